"""From a checked request to its answer: submit, gather or stream, abort when nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.errors import Error, RequestAborted
from runtime.server.client import Streams, as_arguments, options_as_arguments
from runtime.server.http_errors import HttpError, error_object
from runtime.server.messages import Accepted, Candidate, Delta, Ended, Event, Metrics, Scored
from runtime.server.protocol import Parsed, StreamOptions
from runtime.server.serving import Serving

_MAX_WARNED = 20
_MAX_NAME_CHARS = 40
_MAX_POSITIONS = 256  # with candidates, written on the event loop
_MAX_TOKENS = 8192  # likewise, without


@dataclass
class Prompt:
    """One prompt. `scores` has the candidates of each token once it was scored, none for the first."""

    text: str | None
    token_ids: list[int]
    scores: list[list[Candidate]] = field(default_factory=list)


@dataclass
class Choice:
    """A completion as far as it has come."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[Candidate]] = field(default_factory=list)
    finish_reason: str | None = None
    last_token_at: float | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []
        self.finish_reason = delta.finish_reason


class Shape(Protocol):
    """The words of one endpoint. `index` is a choice's place in the answer."""

    def head(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        """A stream's first chunk of a choice, before any token."""

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Further ones, as far as there is something to say."""

    def tail(self, usage: dict[str, Any]) -> dict[str, Any]:
        """A stream's last chunk, when the usage was asked for."""

    def whole(self, prompts: Sequence[Prompt], choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""


class Generation:
    """The prompts of one HTTP request.

    Args:
        generate: False: prompts are scored and nothing else.
        stream_options: include_usage: a stream ends with the token counts; continuous_usage_stats: every chunk has them
            so far, and tokens without text make one too.
    """

    def __init__(
        self,
        serving: Serving,
        request: Request,
        prompts: list[Prompt],
        parsed: Parsed,
        shape: Shape,
        *,
        generate: bool = True,
        stream_options: StreamOptions | None = None,
    ) -> None:
        self._serving = serving
        self._request = request
        self._prompts = prompts
        self._parsed = parsed
        self._shape = shape
        self._generate = generate
        self._include_usage = bool(stream_options and stream_options.include_usage)
        self._continuous_usage = bool(stream_options and stream_options.continuous_usage_stats)
        self._streams = Streams(serving.engine)
        self._choices = [Choice() for _ in range(len(prompts) * parsed.params.n)]
        self._metrics: list[Metrics] = []
        self._is_disconnected = False
        self._arrived_at: float = request.scope["state"]["arrived_at"]

    async def respond(self, *, stream: bool) -> Response:
        """The answer; a stream's is returned once the engine has accepted all prompts.

        Raises:
            Error: refused.
        """
        self._submit()
        watcher = asyncio.create_task(self._abort_on_disconnect())
        self._serving.num_requests += 1
        try:
            events = await self._read_until_accepted()
        except BaseException as error:
            self._finish(watcher, error)
            raise
        if stream:
            return EventStream(self._chunks(events, watcher), self._headers())
        return await self._gather(events, watcher)

    async def _gather(self, events: list[tuple[int, Event]], watcher: asyncio.Task[None]) -> Response:
        error: BaseException | None = None
        try:
            while events:
                for request, event in events:
                    self._take(request, event)
                events = await self._streams.read()
        except BaseException as found:
            error = found
            raise
        finally:
            self._finish(watcher, error)
        num_positions = sum(len(c.logprobs) for c in self._choices) + sum(len(p.scores) for p in self._prompts)
        is_long = sum(len(choice.token_ids) for choice in self._choices) > _MAX_TOKENS
        content = await self._beside_loop(is_long or num_positions > _MAX_POSITIONS, self._encode_whole)
        return Response(content, 200, self._headers(), media_type="application/json")

    def _encode_whole(self) -> bytes:
        return msgspec.json.encode(self._shape.whole(self._prompts, self._choices, self._usage()))

    async def _beside_loop(self, is_long: bool, encode: Callable[[], bytes]) -> bytes:
        """The result, made in a thread when that takes long."""
        return await self._serving.in_thread(encode) if is_long else encode()

    async def _chunks(
        self, events: list[tuple[int, Event]], watcher: asyncio.Task[None]
    ) -> AsyncIterator[tuple[bytes, bool]]:
        """(block of server-sent events, whether others follow); an error is the last of them."""
        error: BaseException | None = None
        try:
            while True:
                block = await self._say_all(events)
                if self._streams.is_complete:
                    break
                if block:
                    yield block, True
                events = await self._streams.read()
            yield block + self._last_words(), False
        except Exception as found:
            error = found
            if not self._is_disconnected:
                yield self._encode(error_object(found)), False
        except BaseException as found:
            error = found
            raise
        finally:
            self._finish(watcher, error)

    def _submit(self) -> None:
        params, options = as_arguments(self._parsed.params), options_as_arguments(self._parsed.options)
        if not self._serving.has_tokenizer:
            params["detokenize"] = False
        for prompt in self._prompts:
            self._streams.submit(
                prompt.token_ids,
                params=params,
                options=options,
                num_completions=self._parsed.params.n,
                generate=self._generate,
            )
        self._serving.release_body(self._request.scope)

    async def _read_until_accepted(self) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        num_accepted = 0
        while num_accepted < len(self._prompts):
            events = await self._streams.read()
            num_accepted += sum(isinstance(event, Accepted) for _, event in events)
            found += events
        return found

    async def _abort_on_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._is_disconnected = True
        self._streams.abort()

    async def _say_all(self, events: list[tuple[int, Event]]) -> bytes:
        def say() -> bytes:
            return b"".join(self._encode(chunk) for request, event in events for chunk in self._say(request, event))

        return await self._beside_loop(_num_positions(events) > _MAX_POSITIONS, say)

    def _last_words(self) -> bytes:
        usage = self._encode(self._shape.tail(self._usage())) if self._include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _say(self, request: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that an event makes."""
        self._take(request, event)
        n, prompt = self._parsed.params.n, self._prompts[request]
        is_scored = self._parsed.params.prompt_logprobs is not None and len(prompt.token_ids) > 1
        said: list[dict[str, Any] | None] = []
        if isinstance(event, Scored if is_scored else Accepted):
            said = [self._shape.head(index, prompt) for index in range(request * n, (request + 1) * n)]
        if isinstance(event, Ended) and not self._generate:
            event = Delta(event.id, 0, "", [], finish_reason="length")
        if isinstance(event, Delta) and self._says_something(event):
            said = [*said, *self._shape.chunks(request * n + event.index, event)]
        for chunk in said:
            if chunk is not None:
                yield {**chunk, "usage": self._usage_so_far()} if self._continuous_usage else chunk

    def _says_something(self, delta: Delta) -> bool:
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            return True
        return self._continuous_usage and bool(delta.token_ids)

    def _take(self, request: int, event: Event) -> None:
        if isinstance(event, Delta):
            choice = self._choices[request * self._parsed.params.n + event.index]
            choice.add(event)
            self._note_tokens(choice, len(event.token_ids))
        elif isinstance(event, Scored):
            self._prompts[request].scores = event.positions
        elif isinstance(event, Ended):
            self._metrics.append(event.metrics)
            self._serving.metrics.saw_end(event.metrics)

    def _note_tokens(self, choice: Choice, count: int) -> None:
        now = time.monotonic()
        if choice.last_token_at is not None and count:
            self._serving.metrics.saw_tokens(count, now - choice.last_token_at)
        elif count:
            self._log.setdefault("ttft_ms", round((now - self._arrived_at) * 1e3, 1))
        if count:
            choice.last_token_at = now

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(prompt.token_ids) for prompt in self._prompts)
        output = sum(metrics.output_tokens for metrics in self._metrics)
        cached = sum(min(m.cached_tokens, m.prompt_tokens) for m in self._metrics)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _usage_so_far(self) -> dict[str, Any]:
        prompt = sum(len(prompt.token_ids) for prompt in self._prompts)
        output = sum(len(choice.token_ids) for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def _headers(self) -> dict[str, str]:
        ignored = self._parsed.ignored
        if not ignored:
            return {}
        names = ", ".join(f"'{quote(name, safe='')[:_MAX_NAME_CHARS]}'" for name in ignored[:_MAX_WARNED])
        return {"x-runtime-warning": f"unknown fields were ignored: {names}"}

    @property
    def _log(self) -> dict[str, Any]:
        found: dict[str, Any] = self._request.scope["state"]["log"]
        return found

    def _finish(self, watcher: asyncio.Task[None], error: BaseException | None) -> None:
        """However it ended: nothing of it runs on."""
        self._streams.abort()
        watcher.cancel()
        self._serving.num_requests -= 1
        self._log["prompt_tokens"] = sum(len(prompt.token_ids) for prompt in self._prompts)
        self._log["output_tokens"] = sum(len(choice.token_ids) for choice in self._choices)
        if self._metrics and self._metrics[0].ttft_s is not None:
            self._log["engine_ttft_ms"] = round(self._metrics[0].ttft_s * 1e3, 1)
        outcome = _outcome(error)
        if outcome is not None:
            self._log["ended_by"] = outcome
            self._serving.metrics.saw_outcome(outcome)

    @staticmethod
    def _encode(chunk: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _num_positions(events: Sequence[tuple[int, Event]]) -> int:
    """Tokens whose candidates are to be written."""
    scored = sum(len(event.positions) for _, event in events if isinstance(event, Scored))
    return scored + sum(len(event.logprobs or ()) for _, event in events if isinstance(event, Delta))


class EventStream(Response):
    """Server-sent events from an iterator of blocks, the last of which is written with the end of the answer."""

    def __init__(self, blocks: AsyncIterator[tuple[bytes, bool]], headers: dict[str, str]) -> None:
        super().__init__(None, 200, {**headers, "x-accel-buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            is_open = True
            async for block, is_open in self._blocks:
                await send({"type": "http.response.body", "body": block, "more_body": is_open})
        finally:
            with contextlib.suppress(RuntimeError):  # already closing
                await self._blocks.aclose()  # type: ignore[attr-defined]
        if is_open:  # nobody was there for an error
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _outcome(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, (RequestAborted, asyncio.CancelledError)):
        return "aborted"
    if isinstance(error, HttpError):
        return error.error_code
    return error.code if isinstance(error, Error) else "internal_error"
