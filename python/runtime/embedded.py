"""An engine inside a C++ program: requests come out of a mailbox, chunks go back into it.

`libruntime.so` (csrc/embed) makes the mailbox; its callers put requests in and wait for chunks without the GIL. Here
one thread tokenises and submits what they ask for, and the engine thread writes each request's news.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from runtime import _core
from runtime.config import EngineConfig
from runtime.engine import Engine, RequestHandle, SubmitOptions
from runtime.engine.memory_plan import MemoryPlan, plan_for
from runtime.engine.output_processor import FINISH_REASONS
from runtime.engine.request import CompletionReader
from runtime.log import get_logger, set_level
from runtime.outputs import RequestMetrics
from runtime.prompts import encode_prompt, encode_scored
from runtime.sampling_params import SCORE_PARAMS, SamplingParams

logger = get_logger(__name__)

_WAIT_S = 60.0  # for items; closing the mailbox ends it
_SUBMIT, _SCORE, _ABORT, _MORE = range(4)  # kinds of items, as in csrc/embed/bridge.h
_OPTIONS = ("priority", "tenant", "deadline_s", "cache_salt")


def plan(arguments: dict[str, Any]) -> MemoryPlan:
    """`LLM.plan` with the arguments of an engine."""
    return plan_for(EngineConfig.from_arguments(arguments), None, None)


class EmbeddedEngine:
    """An engine and the thread that takes its requests from a mailbox.

    Args:
        arguments: those of `LLM`.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError, CapacityError
    """

    def __init__(self, mailbox: _core.Mailbox, arguments: dict[str, Any]) -> None:
        config = EngineConfig.from_arguments(arguments)
        if config.log_level is not None:
            set_level(config.log_level)
        self._mailbox = mailbox
        self._engine = Engine(config)
        self._running: dict[int, RequestHandle] = {}
        self._thread = threading.Thread(target=self._serve, name="runtime-intake", daemon=True)
        # also at the end of an interpreter that the program runs itself, which no thread may outlive
        self._finalizer = weakref.finalize(self, _close, mailbox, self._engine, self._thread)
        self._thread.start()

    @property
    def stats(self) -> _core.SchedulerStats:
        """Counts of the scheduler as of its last step."""
        return self._engine.stats

    def close(self) -> None:
        """Ends what still runs, and the threads. Idempotent."""
        self._finalizer()

    def _serve(self) -> None:
        while self._mailbox.wait(_WAIT_S):
            for kind, request_id, fields in self._mailbox.take():
                try:
                    self._do(kind, request_id, fields)
                except Exception as error:  # of this request alone
                    self._mailbox.fail(request_id, error)

    def _do(self, kind: int, request_id: int, fields: dict[str, Any]) -> None:
        if kind in (_ABORT, _MORE):
            if (running := self._running.get(request_id)) is not None:
                running.abort() if kind == _ABORT else running.notify()
            return
        prompt = fields.pop("prompt")
        listener = _Outlet(self._mailbox, request_id, self._running).listen
        if kind == _SCORE:
            text, token_ids, start = encode_scored(prompt, fields["continuation"], self._engine.tokenizer)
            params, options = SCORE_PARAMS, SubmitOptions(score_start=start, listener=listener)
        else:
            text, token_ids = encode_prompt(prompt, self._engine.tokenizer)
            options = SubmitOptions(
                **{name: fields.pop(name) for name in _OPTIONS if name in fields}, listener=listener
            )
            params = SamplingParams(**fields)
        handle = self._engine.submit(text, token_ids, params, options)
        self._running[request_id] = handle
        if handle.done:  # perhaps before it was entered
            self._running.pop(request_id, None)


class _Outlet:
    """Writes the news of one request into the mailbox, when its reader has what was written before.

    Args:
        running: the requests that can be aborted; this one is taken out when it has ended.
    """

    def __init__(self, mailbox: _core.Mailbox, request_id: int, running: dict[int, RequestHandle]) -> None:
        self._mailbox = mailbox
        self._request_id = request_id
        self._running = running
        self._readers: list[CompletionReader] = []
        self._lock = threading.Lock()  # nearly always the engine thread's; a reader, an abort or the watchdog may come

    def listen(self, handle: RequestHandle) -> None:
        if not self._mailbox.wants_news(self._request_id) and not handle.done:
            return
        try:
            with self._lock:
                self._write_news(handle)
        except Exception as error:
            logger.exception("request %s failed", handle.request_id)
            self._mailbox.fail(self._request_id, error)
            handle.abort()

    def _write_news(self, handle: RequestHandle) -> None:
        done = handle.done  # before the news: they are all there then
        self._readers = self._readers or [CompletionReader(completion) for completion in handle.completions]
        news = [(reader, found) for reader in self._readers if (found := _read(handle, reader)) is not None]
        for i, (reader, (text, token_ids, reason)) in enumerate(news):
            metrics = _metrics(handle) if done and i == len(news) - 1 else None
            self._push(handle, reader, text, token_ids, reason, metrics)
        if done:
            self._end(handle)

    def _push(
        self,
        handle: RequestHandle,
        reader: CompletionReader,
        text: str,
        token_ids: list[int],
        reason: str | None,
        metrics: _core.MailboxMetrics | None,
    ) -> None:
        completion = reader.completion
        logprobs: list[tuple[list[int], list[float]]] = []
        if completion.has_logprobs:
            logprobs = completion.raw_logprobs[reader.num_tokens - len(token_ids) : reader.num_tokens]
        elif handle.is_score:
            token_ids = handle.prompt_token_ids[handle.options.score_start :]
            logprobs = [([token_id], values[:1]) for token_id, (_, values) in zip(token_ids, completion.scores)]
        stop = completion.stop_reason if reason is not None else None
        self._mailbox.push(
            self._request_id,
            completion.index,
            text,
            token_ids,
            logprobs,
            FINISH_REASONS.index(reason),
            stop if isinstance(stop, str) else None,
            stop if isinstance(stop, int) else -1,
            metrics,
        )

    def _end(self, handle: RequestHandle) -> None:
        self._running.pop(self._request_id, None)
        handle.listeners = ()  # they and the handle refer to each other
        error = next((c.error for c in handle.completions if c.error is not None), None)
        if error is None:
            self._mailbox.end(self._request_id)
        else:
            self._mailbox.fail(self._request_id, error)


def _read(handle: RequestHandle, reader: CompletionReader) -> tuple[str, list[int], str | None] | None:
    """A completion that a stop string has ended is left until the scheduler's last word, which the metrics need."""
    if reader.completion.finished and not reader.completion.closed:
        return None
    return handle.read(reader)


def _metrics(handle: RequestHandle) -> _core.MailboxMetrics:
    found: RequestMetrics = handle.metrics()
    return _core.MailboxMetrics(
        queue_s=found.queue_s or 0.0,
        ttft_s=found.ttft_s or 0.0,
        e2e_s=found.e2e_s or 0.0,
        prompt_tokens=found.prompt_tokens,
        cached_tokens=found.cached_tokens,
        output_tokens=found.output_tokens,
        preemptions=found.preemptions,
    )


def _close(mailbox: _core.Mailbox, engine: Engine, intake: threading.Thread) -> None:
    mailbox.close()
    engine.close()
    intake.join()
