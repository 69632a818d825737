"""The messages of a chat, checked, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.errors import InvalidRequestError
from runtime.server.json_body import MAX_DEPTH, is_shallow

MAX_TOOL_CALLS = 128  # of one message


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages whose content is one text; a developer's is the system's. Their roles are checked by the template.

    Arguments of tool calls, which are JSON in a text, become objects, as templates expect. A message that calls tools
    may have no content, and keeps None then: templates tell the two apart. Keys that are null are left out.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequestError("messages", messages, "a list of at least one {'role': ..., 'content': ...}")
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError(where, message, "an object with a role and a content")
    if message["role"] == "function" or message.get("function_call") is not None:
        raise InvalidRequestError(
            where, message=f"{where}: functions are not supported; use tools: tool_calls, and messages of the role tool"
        )
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise InvalidRequestError(f"{where}.tool_call_id", message.get("tool_call_id"), "the id of the call it answers")
    found = {key: value for key, value in message.items() if value is not None}
    found["role"] = "system" if message["role"] == "developer" else message["role"]
    calls = _read_calls(found.pop("tool_calls", []), f"{where}.tool_calls")
    content = message.get("content")
    found["content"] = None if calls and content is None else _text_of(content, f"{where}.content")
    if calls:
        found["tool_calls"] = calls
    return found


def _text_of(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise InvalidRequestError(where, content, "a text or a list of text parts")
    parts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"{where}[{i}]", part, "{'type': 'text', 'text': ...}: this model reads text alone"
            )
        parts.append(part["text"])
    return "\n".join(parts)


def _read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidRequestError(where, calls, "a list of calls, as they came in an answer")
    if len(calls) > MAX_TOOL_CALLS:
        limit = f"at most {MAX_TOOL_CALLS} calls"
        raise InvalidRequestError(where, f"{len(calls)} calls", limit, MAX_TOOL_CALLS)
    return [_read_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        expected = "{'id': ..., 'type': 'function', 'function': {'name': ..., 'arguments': ...}}"
        raise InvalidRequestError(where, call, expected)
    arguments = _read_arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _read_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """Of a call without any, some clients make nothing of it."""
    if isinstance(arguments, Mapping) or not arguments:
        return dict(arguments or {})
    try:
        body = arguments.encode() if isinstance(arguments, str) else b""
        found = msgspec.json.decode(body) if is_shallow(body) else None
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequestError(where, arguments, f"a JSON object in a text, of at most {MAX_DEPTH} levels")
    return found
