"""JSON from and to clients: bounded in size, depth and the time it may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request

from runtime.server.http_errors import HttpError

T = TypeVar("T")

MAX_DEPTH = 64
# what a parser makes of a body is many times as large, and making it stops every other thread
MAX_VALUES = 1 << 18
MAX_CONTAINERS = 1 << 16  # arrays, objects and their keys

_SMALL_BYTES = 64 << 10  # read on the event loop
_PIECE_BYTES = 128 << 10  # scanned without letting other threads run
_DISCARD_BYTES, _DISCARD_S = 16 << 20, 0.5  # of a body that is refused

_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},:"))
# half of a UTF-16 pair; the other backslashes are gone
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F][\da-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F][\da-fA-F]{2}"
)
_AS_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")  # of the depth, as int8


class BodyBudget:
    """Bytes of bodies that may be held at once."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def lease(self) -> BodyLease:
        return BodyLease(self)


class BodyLease:
    """What one body has of a budget, from its arrival until its prompts are with the engine."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """HttpError 429 when there is no room."""
        if self._budget.num_bytes + num_bytes > self._budget.max_bytes:
            raise HttpError(
                429,
                f"{self._budget.num_bytes} bytes of other bodies are on their way to the engine; the limit is "
                f"{self._budget.max_bytes} (retry later, or raise --max-pending-body-bytes)",
                "capacity_exceeded",
                headers={"connection": "close"},
            )
        self._budget.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def give_back(self) -> None:
        """Idempotent."""
        self._budget.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_object(
    request: Request,
    understand: Callable[[dict[str, Any]], T],
    lease: BodyLease,
    parser: Executor,
    *,
    max_bytes: int,
    timeout_s: float,
) -> T:
    """What a function makes of the JSON object in a request's body.

    Args:
        lease: takes what arrives; the caller gives it back.
        parser: parses and understands what is large. One thread: it shares the interpreter with the event loop.

    Raises:
        HttpError: 400, 408, 413, 415 or 429; and what `understand` raises.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise HttpError(415, f"content-type is {content_type!r}: must be application/json", "unsupported_media_type")
    stream = request.stream()
    try:
        async with _Deadline(timeout_s):
            body = await _read_body(stream, _length_of(request), max_bytes, lease)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {timeout_s} s"
        raise HttpError(408, message, "body_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise HttpError(400, "the client went away", "client_disconnected") from None
    except HttpError:
        lease.give_back()
        await _discard(stream)
        raise
    if len(body) <= _SMALL_BYTES:
        return understand(parse_object(body))
    return await asyncio.get_running_loop().run_in_executor(parser, lambda: understand(parse_object(body)))


class _Deadline:
    """asyncio.TimeoutError when its block takes longer: asyncio.timeout, which came with Python 3.11.

    Unlike asyncio.wait_for it makes no task, so a body that is there already is read without a turn of the loop.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._has_passed = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._pass, task)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._has_passed and isinstance(error, asyncio.CancelledError):
            raise asyncio.TimeoutError from error

    def _pass(self, task: asyncio.Task[Any]) -> None:
        self._has_passed = True
        task.cancel()


def _length_of(request: Request) -> int:
    """As announced; 0: it is not."""
    length = request.headers.get("content-length", "0")
    return int(length[:18]) if length.isdecimal() else 0  # more digits are too many anyway


async def _read_body(stream: AsyncIterator[bytes], length: int, max_bytes: int, lease: BodyLease) -> bytes:
    """HttpError 413 or 429: it is not read to its end."""
    body = bytearray()
    if length <= max_bytes:
        async for chunk in stream:
            lease.take(len(chunk))
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    message = f"the body has more than {max_bytes} bytes"
    raise HttpError(413, message, "body_too_large", headers={"connection": "close"})


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
    """A JSON object of bounded depth and number of values; in time linear in its size."""
    try:
        check_structure(body)
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        found = _lone_surrogate(body, str(error)) or str(error)[:200]
        raise HttpError(400, f"the body is not JSON: {found}", "invalid_json") from None
    if not isinstance(found, dict):
        raise HttpError(400, f"the body is {_kind(found)}: must be a JSON object", "invalid_json")
    return found


def _lone_surrogate(body: bytes, error: str) -> str | None:
    """What msgspec calls an invalid pair or, when the body has no room for the other half, truncated."""
    if "surrogate" not in error and not ("truncated" in error and body.rstrip().endswith(b"}")):
        return None
    found = _LONE_SURROGATE.search(body.replace(b"\\\\", b"  "))  # of the same length
    if found is None:
        return None
    return f"{found[0].decode()} (byte {found.start()}) is half of a surrogate pair: leave it out, or send \\ufffd"


def is_shallow(body: bytes, max_depth: int = MAX_DEPTH) -> bool:
    """Whether brackets nest at most so many levels. Of what is not JSON either answer may come."""
    depth = 0
    for structure in _structure(body):
        depth, deepest = _depths(structure, depth)
        if deepest > max_depth:
            return False
    return True


def check_structure(body: bytes) -> None:
    """HttpError: nested deeper than MAX_DEPTH, or too many values. Of what is not JSON any answer may come."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and len(body) <= MAX_VALUES:
        return
    depth = num_containers = num_values = 0
    for structure in _structure(body):
        num_values += structure.count(b",")
        num_containers += structure.count(b"[") + structure.count(b"{") + structure.count(b":")
        depth, deepest = _depths(structure, depth)
        if deepest > MAX_DEPTH:
            raise HttpError(400, f"the body is nested deeper than {MAX_DEPTH} levels", "json_too_deep")
        if num_values > MAX_VALUES:
            raise HttpError(400, f"the body has more than {MAX_VALUES} values: send it in parts", "json_too_large")
        if num_containers > MAX_CONTAINERS:
            message = f"the body has more than {MAX_CONTAINERS} arrays, objects and keys: send it in parts"
            raise HttpError(400, message, "json_too_large")


def _structure(body: bytes) -> Iterator[bytes]:
    """Brackets, commas and colons outside of strings, a piece of the body at a time."""
    in_string, rest = False, b""
    for start in range(0, len(body), _PIECE_BYTES):
        piece = rest + body[start : start + _PIECE_BYTES]
        plain = piece.replace(b"\\\\", b"")
        rest = b"\\" if plain.endswith(b"\\") else b""  # escapes what comes next
        parts = plain[: len(plain) - len(rest)].replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[in_string::2]).translate(None, _NOT_STRUCTURE)
        in_string ^= len(parts) % 2 == 0


def _depths(structure: bytes, depth: int) -> tuple[int, int]:
    """(depth after these brackets, deepest on the way), from `depth` on."""
    brackets = np.frombuffer(structure.translate(_AS_STEPS, b",:"), dtype=np.int8)
    if not len(brackets):
        return depth, depth
    depths = np.cumsum(brackets, dtype=np.int32)
    return depth + int(depths[-1]), depth + int(depths.max())


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
