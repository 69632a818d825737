"""How the model that is served calls tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import InvalidRequestError
from runtime.server.tool_answer import ToolAnswer
from runtime.server.tool_parser import FORMATS, JsonCallParser, ToolFormat
from runtime.server.tool_use import ToolUse
from runtime.structured_outputs import StructuredOutputsParams
from runtime.tokenizer import Tokenizer

_NO_PARAMETERS = {"properties": {}, "additionalProperties": False}
# spaces as the data that models were taught with has them, and no others
_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


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

        A special token stands before calls of some models, which answers do not show otherwise. A call that must come
        is written under a grammar.

        Raises:
            InvalidRequestError: a grammar cannot be that large.
        """
        found: dict[str, Any] = {"skip_special_tokens": False} if tools.names and self._is_special else {}
        if tools.forced:
            try:
                form = StructuredOutputsParams(grammar=_call_grammar(self._known_format(), tools.forced))
            except InvalidRequestError as error:
                raise InvalidRequestError("tools", message=f"tools under this tool_choice: {error.message}") from None
            found["structured_outputs"] = form
        return found

    def beginning(self, tools: ToolUse) -> str:
        """The prompt's end, where a call must come."""
        return self._known_format().beginning if tools.forced else ""

    def answers(self, tools: ToolUse, n: int) -> list[ToolAnswer]:
        """Read n choices for calls; none: there is nothing to call.

        Raises:
            InvalidRequestError: how this model writes calls is not known.
        """
        if not tools.names:
            return []
        found = self._known_format()
        parsers = [JsonCallParser(found, tools.names, has_begun=bool(tools.forced)) for _ in range(n)]
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


def _call_grammar(format: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> str:
    """One call of one tool, in llguidance's variant of Lark. Each schema stays a whole, for its references' sake."""
    calls = [f"call_{i}" for i in range(len(tools))]
    rules = [f"start: {' | '.join(calls)}"]
    for call, tool in zip(calls, tools):
        function = tool["function"]
        schema = {**(function.get("parameters") or _NO_PARAMETERS), "type": "object", "x-guidance": _SPACES}
        head = json.dumps(f'{{"name": "{function["name"]}", "{format.arguments}": ')  # Lark quotes as JSON does
        rules += [f'{call}: {head} {call}_arguments "}}"', f"{call}_arguments: %json {json.dumps(schema)}"]
    return "\n".join(rules)
