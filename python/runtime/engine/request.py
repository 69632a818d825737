"""A request as its caller holds it, and its completions as the engine fills them.

The engine thread appends token ids; the text is made where it is needed: by whoever reads the request, or by the
engine thread for a completion with stop strings, which only the text can end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from runtime.engine.detokenizer import TextStream
from runtime.engine.submission import SubmitOptions
from runtime.errors import DeadlineExceeded, for_this_caller
from runtime.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk

if TYPE_CHECKING:
    from runtime import _core
    from runtime.engine.constraint import Constraint
    from runtime.sampling_params import SamplingParams
    from runtime.tokenizer import Tokenizer


class Completion:
    """One output of a request, or with index -1 the scoring of its prompt; one request of the scheduler."""

    def __init__(
        self,
        handle: RequestHandle,
        request_id: int,
        index: int,
        numbers: _core.RequestParams,
        text: TextStream | None,
    ) -> None:
        self.handle = handle
        self.request_id = request_id
        self.index = index
        self.numbers = numbers
        self.text = text
        self.constraint: Constraint | None = None  # of its tokens, by structured_outputs and bad_words
        self.has_stop_strings = text is not None and text.has_stops
        self.is_scoring = handle.is_score or index < 0  # scores the prompt and samples nothing
        self.has_logprobs = handle.params.logprobs is not None
        self.token_ids: list[int] = []
        # per token: ids and logprobs of the sampled token, then of the top ones
        self.raw_logprobs: list[tuple[list[int], list[float]]] = []
        self.scores: list[tuple[list[int], list[float]]] = []  # likewise, per scored prompt token
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.num_text_tokens: int | None = None  # without the stop token, once finished by one
        self.num_cached = 0
        self.num_preemptions = 0
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.error: BaseException | None = None
        self.closed = False  # nothing more changes
        self._num_pushed = 0
        self._text_finished = False

    @property
    def finished(self) -> bool:
        """Whether its caller gets no more tokens; the scheduler may still have a last word."""
        return self.finished_at is not None

    def advance_text(self, num_tokens: int) -> str | None:
        """Detokenises up to that many tokens; returns the stop string that was completed."""
        if self.text is None:
            return None
        limit = num_tokens if self.num_text_tokens is None else min(num_tokens, self.num_text_tokens)
        while self._num_pushed < limit:
            self._num_pushed += 1
            stop = self.text.push(self.token_ids[self._num_pushed - 1])
            if stop is not None:
                return stop
        return None

    def finish_text(self) -> str | None:
        """Shows what was held back, once; returns the stop string that this completes."""
        stop = self.advance_text(len(self.token_ids))
        if self.text is None or self._text_finished:
            return stop
        self._text_finished = True
        return stop or self.text.finish()

    def finish(self, reason: str, stop_reason: int | str | None = None, *, error: BaseException | None = None) -> None:
        """No token comes any more. The first call counts."""
        if self.finished_at is None:
            self.finish_reason, self.stop_reason, self.error = reason, stop_reason, error
            self.finished_at = time.perf_counter()

    def close(self) -> None:
        """Ends the wait of the caller, once all completions of the request are closed."""
        self.closed = True
        self.handle.completion_closed()


class RequestHandle:
    """A submitted request: wait for it, iterate over it (also `async for`), or abort it. Thread-safe."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        abort: Callable[[RequestHandle], None],
        options: SubmitOptions = SubmitOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = list(prompt_token_ids)
        self.params = params
        self.options = options
        self.completions: list[Completion] = []
        # where the prompt is scored and others follow: it goes before them, and they find the prompt cached
        self.scoring: Completion | None = None
        self.aborted = False
        self.is_queued = True  # False while, and if in vain, its grammar is compiled
        self.arrival = time.time()
        self.arrived_at = time.perf_counter()
        self._deferred: list[Completion] = []
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # once they are there
        self._tokenizer = tokenizer
        self._abort = abort
        self._done = threading.Event()
        self._lock = threading.Lock()  # of the text
        # called after every token; replaced, never changed in place, so the engine thread reads it unlocked
        self.listeners: tuple[Callable[[], None], ...] = ()
        if options.listener is not None:
            self.listeners = (partial(options.listener, self),)

    @property
    def is_score(self) -> bool:
        """Whether it scores its prompt and samples nothing."""
        return self.options.score_start >= 0

    @property
    def parts(self) -> list[Completion]:
        """Everything that it is to the scheduler."""
        return self.completions if self.scoring is None else [self.scoring, *self.completions]

    @property
    def done(self) -> bool:
        """Whether every completion has ended."""
        return self._done.is_set()

    def abort(self) -> None:
        """Ends the request; what it has so far remains. Idempotent."""
        self._abort(self)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits until the request has ended.

        Raises:
            DeadlineExceeded: it did not end within `timeout` seconds, and keeps running; or within its deadline.
            EngineDeadError: the engine has stopped.
            RequestAborted: the engine was closed.
        """
        self._wait(timeout)
        return self.output()

    def scores(self, timeout: float | None = None) -> list[float]:
        """Waits for a request that scores its prompt; the logprobs, one a scored token."""
        self._wait(timeout)
        return [logprobs[0] for _, logprobs in self.completions[0].scores]

    def _wait(self, timeout: float | None) -> None:
        if not self._done.wait(timeout):
            raise DeadlineExceeded(f"request {self.request_id} did not finish within {timeout} s")
        self.raise_error()

    def prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        """As `RequestOutput.prompt_logprobs`; tokens before `score_start` have None."""
        if self._prompt_logprobs is None and self.params.prompt_logprobs is not None:
            start, scoring = max(self.options.score_start, 1), self.completions[0] if self.is_score else self.scoring
            scores = [] if scoring is None else scoring.scores
            if scoring is None or scores:  # a prompt of one token has nothing to score
                self._prompt_logprobs = [None] * start + [self._one_position(*raw) for raw in scores]
        return self._prompt_logprobs

    def output(self) -> RequestOutput:
        """The request as it stands."""
        with self._lock:
            completions = [self._completion_output(c, len(c.token_ids)) for c in self.completions]
        return self._output(completions)

    def __iter__(self) -> Iterator[StreamChunk]:
        ready = threading.Event()
        with Subscription(self, ready.set) as subscription:
            while True:
                ready.clear()
                finished = self._done.is_set()
                yield from subscription.read()
                if finished:
                    break
                ready.wait()
        self.raise_error()

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with Subscription(self, lambda: _call_in(loop, ready.set)) as subscription:
            while True:
                ready.clear()
                finished = self._done.is_set()
                for chunk in subscription.read():
                    yield chunk
                if finished:
                    break
                await ready.wait()
        self.raise_error()

    def notify(self) -> None:
        """Engine thread: something changed."""
        for listener in self.listeners:
            listener()

    def completion_closed(self) -> None:
        """Engine thread: one has ended; with the last one so has the request."""
        if all(completion.closed for completion in self.completions):
            self._done.set()
        self.notify()

    def defer(self, completions: list[Completion]) -> None:
        """Completions that are submitted when the first one has computed, and so cached, the prompt."""
        with self._lock:
            self._deferred = completions

    def take_deferred(self) -> list[Completion]:
        """What `defer` left, once; the caller submits or ends it."""
        with self._lock:
            taken, self._deferred = self._deferred, []
        return taken

    def raise_error(self) -> None:
        """Raises what ended a completion, if an error did."""
        for completion in self.completions:
            if completion.error is not None:
                raise for_this_caller(completion.error)

    def read(self, reader: CompletionReader) -> tuple[str, list[int], str | None] | None:
        """What is new to a reader: (text, token ids, finish reason), or None when nothing is."""
        with self._lock:
            return reader.read(self._decoded)

    def _chunk(self, reader: CompletionReader) -> StreamChunk | None:
        found = self.read(reader)
        if found is None:
            return None
        delta, token_ids, reason = found
        completion, end = reader.completion, reader.num_tokens
        logprobs = None
        if completion.has_logprobs:
            logprobs = [self._one_position(*raw) for raw in completion.raw_logprobs[end - len(token_ids) : end]]
        stop_reason = completion.stop_reason if reason is not None else None
        return StreamChunk(completion.index, delta, token_ids, reason, self.output, logprobs, stop_reason)

    def _decoded(self, completion: Completion, num_tokens: int) -> str:
        """The text so far; the caller holds the lock."""
        if completion.text is None:
            return ""
        if not completion.has_stop_strings:
            completion.advance_text(num_tokens)
            if completion.finished and num_tokens == len(completion.token_ids):
                completion.finish_text()
        return completion.text.text

    def _completion_output(self, completion: Completion, num_tokens: int) -> CompletionOutput:
        logprobs = self._logprobs(completion, num_tokens) if completion.has_logprobs else None
        return CompletionOutput(
            index=completion.index,
            text=self._decoded(completion, num_tokens),
            token_ids=completion.token_ids[:num_tokens],
            cumulative_logprob=_cumulative(completion, num_tokens) if completion.has_logprobs else None,
            logprobs=logprobs,
            finish_reason=completion.finish_reason if completion.finished else None,
            stop_reason=completion.stop_reason if completion.finished else None,
        )

    def _logprobs(self, completion: Completion, num_tokens: int) -> list[dict[int, Logprob]]:
        return [self._one_position(*raw) for raw in completion.raw_logprobs[:num_tokens]]

    def _one_position(self, token_ids: list[int], logprobs: list[float]) -> dict[int, Logprob]:
        """Entry 0 is the sampled token; the top ones follow, best first, and are also its rank."""
        top = token_ids[1:]
        found = {t: Logprob(p, rank + 1, self._decode_one(t)) for rank, (t, p) in enumerate(zip(top, logprobs[1:]))}
        if token_ids[0] not in found:
            found = {token_ids[0]: Logprob(logprobs[0], None, self._decode_one(token_ids[0])), **found}
        return found

    def _decode_one(self, token_id: int) -> str | None:
        if self._tokenizer is None:
            return None
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _output(self, completions: list[CompletionOutput]) -> RequestOutput:
        metrics = self.metrics()
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=self.prompt_logprobs(),
            outputs=completions,
            finished=all(c.finished for c in self.completions),
            num_cached_tokens=self.parts[0].num_cached,
            metrics=metrics,
        )

    def metrics(self) -> RequestMetrics:
        """Times and counts as they stand."""
        completions, parts = self.completions, self.parts

        def since_arrival(times: list[float | None], last: bool = False) -> float | None:
            known = [t for t in times if t is not None]
            if not known or (last and len(known) < len(times)):
                return None
            return (max(known) if last else min(known)) - self.arrived_at

        return RequestMetrics(
            arrival=self.arrival,
            queue_s=since_arrival([part.scheduled_at for part in parts]),
            ttft_s=since_arrival([c.first_token_at for c in completions]),
            e2e_s=since_arrival([c.finished_at for c in completions], last=True),
            prompt_tokens=len(self.prompt_token_ids),
            cached_tokens=sum(c.num_cached for c in [parts[0], *completions[1:]]),
            output_tokens=sum(len(c.token_ids) for c in completions),
            preemptions=sum(part.num_preemptions for part in parts),
        )


class CompletionReader:
    """How far one reader of a request has read one of its completions."""

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.num_tokens = 0
        self._num_chars = 0
        self._ended = False

    def read(self, decoded: Callable[[Completion, int], str]) -> tuple[str, list[int], str | None] | None:
        """(new text, new token ids, finish reason), or None when nothing is new."""
        if self._ended:
            return None
        finished = self.completion.finished  # read before the tokens: the last ones come first
        count = len(self.completion.token_ids)
        text = decoded(self.completion, count)
        if count == self.num_tokens and len(text) == self._num_chars and not finished:
            return None
        delta, token_ids = text[self._num_chars :], self.completion.token_ids[self.num_tokens : count]
        self.num_tokens, self._num_chars, self._ended = count, len(text), finished
        return delta, token_ids, self.completion.finish_reason if finished else None


class Subscription:
    """Follows a request for the time of a `with` block, or until `close`.

    Args:
        listener: called after every token and at the end, mostly by the engine thread; it must return at once.
    """

    def __init__(self, handle: RequestHandle, listener: Callable[[], None]) -> None:
        self._handle = handle
        self._listener = listener
        self._readers = [CompletionReader(completion) for completion in handle.completions]
        with handle._lock:
            handle.listeners = (*handle.listeners, listener)

    def read(self) -> Iterator[StreamChunk]:
        """What is new of each completion; one reader at a time."""
        for reader in self._readers:
            chunk = self._handle._chunk(reader)
            if chunk is not None:
                yield chunk

    def close(self) -> None:
        """The listener is not called any more, but for a call that has begun."""
        with self._handle._lock:
            self._handle.listeners = tuple(one for one in self._handle.listeners if one is not self._listener)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _cumulative(completion: Completion, num_tokens: int) -> float:
    return sum(logprobs[0] for _, logprobs in completion.raw_logprobs[:num_tokens])
