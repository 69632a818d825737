"""Tool calls in OpenAI's words: of an answer as it arrives, or in one piece."""

from __future__ import annotations

import secrets
from typing import Any

from runtime.server.tool_parser import Arguments, CallBegins, CallEnds, Part, Text, ToolParser


class ToolAnswer:
    """One choice whose text may hold calls.

    A call that breaks off or goes wrong after its arguments have begun cannot be taken back from a stream, where they
    end as they are; in one piece it is part of the content.

    Args:
        is_parallel: False: calls after the first one are left out.
    """

    def __init__(self, parser: ToolParser, *, is_parallel: bool) -> None:
        self._parser = parser
        self._is_parallel = is_parallel
        self._has_calls = False

    def deltas(self, text: str, *, has_ended: bool) -> list[dict[str, Any]]:
        """The `delta`s that more of the text makes, in order."""
        return [delta for part in self._parts(text, has_ended) if (delta := _delta(part))]

    def message(self, text: str) -> dict[str, Any]:
        """`content`, and `tool_calls` where there are any, of the whole text."""
        content: list[str] = []
        calls: dict[int, tuple[str, list[str]]] = {}  # name and arguments
        for part in self._parts(text, True):
            if isinstance(part, Text):
                content.append(part.text)
            elif isinstance(part, CallBegins):
                calls[part.index] = (part.name, [])
            elif isinstance(part, Arguments):
                calls[part.index][1].append(part.text)
            elif part.raw is not None:
                content.append(part.raw)
                del calls[part.index]
        if not calls:
            return {"content": "".join(content)}
        found = [_call(name, "".join(arguments)) for name, arguments in calls.values()]
        return {"content": "".join(content) or None, "tool_calls": found}

    def finish_reason(self, reason: str | None) -> str | None:
        """`tool_calls` for an answer that came to its own end and has a whole call."""
        return "tool_calls" if reason == "stop" and self._has_calls else reason

    def _parts(self, text: str, has_ended: bool) -> list[Part]:
        parts = self._parser.feed(text)
        if has_ended:
            parts += self._parser.finish()
        parts = [part for part in parts if self._is_parallel or isinstance(part, Text) or part.index == 0]
        self._has_calls |= any(isinstance(part, CallEnds) and part.raw is None for part in parts)
        return parts


def _delta(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Text):
        return {"content": part.text}
    if isinstance(part, CallBegins):
        return {"tool_calls": [{"index": part.index, **_call(part.name, "")}]}
    if isinstance(part, Arguments):
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    return None


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
