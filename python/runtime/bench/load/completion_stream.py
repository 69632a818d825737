"""A streamed completion: server-sent events in, times and token counts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime.bench.load.http_client import Answer

_MAX_LINE_BYTES = 1 << 20
_MAX_ERROR_BYTES = 4096


@dataclass
class Outcome:
    """What became of one request. Times are `time.perf_counter()`.

    Args:
        scheduled_at: when it should have been sent.
        sent_at: when it was.
        chunks: arrivals of output: time, and tokens; 0: the server did not say how many.
        error: None: complete; otherwise a status, or a word of `TransferError` or `CompletionStream`.
        message: the error's text.
        retry_after_s: what a refusal asked for.
    """

    scheduled_at: float
    sent_at: float = 0.0
    ended_at: float = 0.0
    chunks: list[tuple[float, int]] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    message: str = ""
    retry_after_s: float | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None

    @property
    def has_output(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta is not None and (delta.content or delta.reasoning_content)))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class CompletionStream(Answer):
    """Fills an Outcome from the events of /v1/completions or /v1/chat/completions.

    Errors that it finds: the status of a refusal, "stream_error" (the server said so in the stream), "garbage", and
    "unfinished" (no [DONE]).
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._status = 0
        self._rest = b""
        self._is_done = False

    def on_head(self, status: int, headers: Mapping[str, str], now: float) -> None:
        self._status = status
        kind = headers.get("content-type", "")
        if status != 200:
            self._fail(str(status), "")
            self._outcome.retry_after_s = _seconds(headers.get("retry-after"))
        elif not kind.startswith("text/event-stream"):
            self._fail("garbage", f"content-type is {kind[:80]!r}, not text/event-stream")

    def on_data(self, data: bytes, now: float) -> None:
        if self._status != 200:
            self._rest = (self._rest + data)[:_MAX_ERROR_BYTES]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)
        if len(self._rest) > _MAX_LINE_BYTES:
            self._fail("garbage", f"a line of more than {_MAX_LINE_BYTES} bytes")
            self._rest = b""

    def finish(self) -> None:
        """The answer has ended as HTTP says."""
        outcome = self._outcome
        if self._status != 200:
            outcome.message = _message_of(self._rest)
        elif not self._is_done:
            self._fail("unfinished", "the stream ended without [DONE]")

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        try:
            chunk = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._fail("garbage", f"an event that is no chunk: {error}")
            return
        if chunk.error is not None:
            self._fail("stream_error", _message_of(data))
        num_tokens = self._count(chunk.usage)
        # without choices it is the last event, with the count of all
        if chunk.choices and (num_tokens or any(choice.has_output for choice in chunk.choices)):
            self._add(now, num_tokens)

    def _count(self, usage: _Usage | None) -> int:
        """Tokens since the last count."""
        if usage is None:
            return 0
        outcome = self._outcome
        before, outcome.output_tokens = outcome.output_tokens, usage.completion_tokens
        outcome.prompt_tokens = usage.prompt_tokens
        return max(usage.completion_tokens - before, 0)

    def _add(self, now: float, num_tokens: int) -> None:
        chunks = self._outcome.chunks
        if chunks and chunks[-1][0] == now:  # of one packet
            chunks[-1] = now, chunks[-1][1] + num_tokens
        else:
            chunks.append((now, num_tokens))

    def _fail(self, kind: str, message: str) -> None:
        """The first reason counts."""
        if self._outcome.error is None:
            self._outcome.error, self._outcome.message = kind, message


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # a date
        return None


def _message_of(body: bytes) -> str:
    """The message of an OpenAI error, or the body's first line."""
    try:
        found = msgspec.json.decode(body)
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        return body.decode("utf-8", "replace").split("\n")[0][:200]
