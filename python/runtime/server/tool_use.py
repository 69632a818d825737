"""What a request says of tools, checked: which functions there are, and whether one must be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.errors import InvalidRequestError
from runtime.server.json_body import is_shallow

if TYPE_CHECKING:
    from runtime.server.protocol import ChatBody

MAX_TOOLS = 128
MAX_TOOL_BYTES = 64 << 10  # of one tool's JSON
MAX_SCHEMA_DEPTH = 32  # levels of `parameters`
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EXAMPLE = "{'type': 'function', 'function': {'name': ..., 'parameters': {...}}}"


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request.

    Args:
        shown: as they came, for the chat template; None: there are none, or none is to be called.
        names: functions that an answer may call.
        is_parallel: an answer may call several.
        forced: tools of which an answer must call one.
    """

    shown: Sequence[Mapping[str, Any]] | None = None
    names: frozenset[str] = frozenset()
    is_parallel: bool = True
    forced: Sequence[Mapping[str, Any]] = ()


def read_tools(body: ChatBody) -> ToolUse:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat.

    Raises:
        InvalidRequestError: it names the tool, the limit, and what works.
    """
    tools = [] if body.tools is None else body.tools
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidRequestError("tools", tools, f"a list of {_EXAMPLE}")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError("tools", f"{len(tools)} tools", f"at most {MAX_TOOLS} tools", MAX_TOOLS)
    names: list[str] = []
    for i, tool in enumerate(tools):
        names.append(_name_of(tool, f"tools[{i}]"))
        if names[-1] in names[:-1]:
            raise InvalidRequestError(f"tools[{i}].function.name", names[-1], "a name that no other tool has")
    forced = _forced(body.tool_choice, tools, names)
    if body.tool_choice == "none" or not names:
        return ToolUse()
    return ToolUse(list(tools), frozenset(names), body.parallel_tool_calls is not False, forced)


def _name_of(tool: Any, where: str) -> str:
    """The name of a tool, once all of it was checked."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        raise InvalidRequestError(where, tool, f"a function: {_EXAMPLE}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        limit = "1 to 64 letters, digits, underscores and dashes"
        raise InvalidRequestError(f"{where}.function.name", name, limit)
    for field, kind, limit in (("description", str, "a text"), ("parameters", Mapping, "a JSON Schema, as an object")):
        value = function.get(field)
        if value is not None and not isinstance(value, kind):
            raise InvalidRequestError(f"{where}.function.{field}", value, limit)
    _check_size(tool, function, where)
    return name


def _check_size(tool: Mapping[str, Any], function: Mapping[str, Any], where: str) -> None:
    num_bytes = len(msgspec.json.encode(tool))
    if num_bytes > MAX_TOOL_BYTES:
        raise InvalidRequestError(
            where, f"{num_bytes} bytes of JSON", f"at most {MAX_TOOL_BYTES} bytes", MAX_TOOL_BYTES
        )
    if not is_shallow(msgspec.json.encode(function.get("parameters")), MAX_SCHEMA_DEPTH):
        message = f"{where}.function.parameters: must be at most {MAX_SCHEMA_DEPTH} levels deep"
        raise InvalidRequestError(f"{where}.function.parameters", message=message)


def _forced(choice: Any, tools: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """The tools of which `tool_choice` wants one called; none of them under `none` and `auto`."""
    if choice in (None, "none", "auto"):
        return ()
    is_named = isinstance(choice, Mapping) and choice.get("type") == "function"
    if choice != "required" and not is_named:
        raise InvalidRequestError(
            "tool_choice", choice, "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}"
        )
    if not names:
        raise InvalidRequestError("tool_choice", choice, "'none' or 'auto' where there are no tools", "auto")
    if not is_named:
        return tools
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in names:
        raise InvalidRequestError("tool_choice", name, "the name of one of the tools", names[0])
    return [tools[names.index(name)]]
