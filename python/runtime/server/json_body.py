"""JSON from and to clients: bounded in size, depth and the time it may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from runtime.server.http_errors import HttpError

MAX_DEPTH = 64
_SMALL_BYTES = 64 << 10  # parsed on the event loop
_DISCARD_BYTES, _DISCARD_S = 16 << 20, 0.5  # of a body that is refused

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")


async def read_object(request: Request, *, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        HttpError: 400, 408, 413 or 415.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise HttpError(415, f"content-type is {content_type!r}: must be application/json", "unsupported_media_type")
    stream = request.stream()
    try:
        body = await asyncio.wait_for(_read_body(stream, _length_of(request), max_bytes), timeout_s)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {timeout_s} s"
        raise HttpError(408, message, "body_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise HttpError(400, "the client went away", "client_disconnected") from None
    if body is None:
        await _discard(stream)
        message = f"the body has more than {max_bytes} bytes"
        raise HttpError(413, message, "body_too_large", headers={"connection": "close"})
    if len(body) <= _SMALL_BYTES:
        return parse_object(body)
    return await asyncio.to_thread(parse_object, body)


def _length_of(request: Request) -> int:
    """As announced; 0: it is not."""
    length = request.headers.get("content-length", "0")
    return int(length[:18]) if length.isdecimal() else 0  # more digits are too many anyway


async def _read_body(stream: AsyncIterator[bytes], length: int, max_bytes: int) -> bytes | None:
    """None: it is too large, and not read to its end."""
    if length > max_bytes:
        return None
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """The rest of a body, within bounds: the end of a connection with unread bytes costs the client its answer."""

    async def read() -> None:
        left = _DISCARD_BYTES
        async for chunk in stream:
            left -= len(chunk)
            if left < 0:
                return

    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read(), _DISCARD_S)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object of at most MAX_DEPTH levels; in time linear in its size."""
    try:
        if not is_shallow(body):
            raise HttpError(400, f"the body is nested deeper than {MAX_DEPTH} levels", "json_too_deep")
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HttpError(400, f"the body is not JSON: {str(error)[:200]}", "invalid_json") from None
    if not isinstance(found, dict):
        raise HttpError(400, f"the body is {_kind(found)}: must be a JSON object", "invalid_json")
    return found


def is_shallow(body: bytes, max_depth: int = MAX_DEPTH) -> bool:
    """Whether brackets nest at most so many levels. Of what is not JSON either answer may come."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return True
    brackets = _STRING.sub(b"", body).translate(_AS_SQUARE, _NOT_BRACKETS)
    for _ in range(max_depth):  # each pass takes the innermost level off
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"")
    return not brackets


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
