"""How the model that is served calls tools."""

from __future__ import annotations

from typing import Any

from runtime.errors import InvalidRequestError
from runtime.server.tool_answer import ToolAnswer
from runtime.server.tool_parser import FORMATS, JsonCallParser, ToolFormat
from runtime.server.tool_use import ToolUse
from runtime.tokenizer import Tokenizer


class ToolCaller:
    """A model's format of calls, for requests that have tools.

    Args:
        parser: `--tool-call-parser`.
    """

    def __init__(self, parser: str, tokenizer: Tokenizer) -> None:
        self._format = _find_format(parser, tokenizer)
        self._is_special = self._format is not None and tokenizer.is_special(self._format.opening)

    def sampling(self, tools: ToolUse) -> dict[str, Any]:
        """What SamplingParams need for these tools.

        A special token stands before calls of some models, which answers do not show otherwise.

        Raises:
            InvalidRequestError: a call must come, which only a grammar could enforce.
        """
        if tools.forced:
            message = "tool_choice: a call cannot be enforced; auto lets the model choose, none keeps it from calling"
            raise InvalidRequestError("tool_choice", message=message)
        return {"skip_special_tokens": False} if tools.names and self._is_special else {}

    def answers(self, tools: ToolUse, n: int) -> list[ToolAnswer]:
        """Read n choices for calls; none: there is nothing to call.

        Raises:
            InvalidRequestError: how this model writes calls is not known.
        """
        if not tools.names:
            return []
        found = self._known_format()
        parsers = [JsonCallParser(found, tools.names) for _ in range(n)]
        return [ToolAnswer(parser, is_parallel=tools.is_parallel) for parser in parsers]

    def _known_format(self) -> ToolFormat:
        if self._format is None:
            message = "tools: it is not known how this model writes tool calls"
            raise InvalidRequestError("tools", message=message, hint=f"--tool-call-parser {' or '.join(FORMATS)}")
        return self._format


def _find_format(parser: str, tokenizer: Tokenizer) -> ToolFormat | None:
    """The format of `--tool-call-parser`; under `auto` the one whose opening the model knows.

    That is the one that stands in its chat template, else the one that is a token of its own; None: neither.
    """
    if parser != "auto":
        return FORMATS[parser]
    source = tokenizer.tool_template_source
    shown = [found for found in FORMATS.values() if found.opening in source]
    known = [found for found in FORMATS.values() if tokenizer.token_to_id(found.opening) is not None]
    return next(iter(shown + known), None)
