"""The engine's side of `EngineClient`: takes its messages, and sends outputs in batches."""

from __future__ import annotations

import array
import base64
import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine import Engine, RequestHandle, SubmitOptions, Subscription
from runtime.errors import EngineDeadError, Error, InvalidRequestError
from runtime.log import get_logger
from runtime.outputs import Logprob, StreamChunk
from runtime.sampling_params import SCORE_PARAMS, SamplingParams
from runtime.server.messages import (
    Abort,
    Accepted,
    Ack,
    Answer,
    Candidate,
    Delta,
    Ended,
    Event,
    Failed,
    FromEngine,
    Info,
    Metrics,
    Outputs,
    Query,
    Refused,
    Scored,
    Submit,
    ToEngine,
    to_wire,
)

if TYPE_CHECKING:
    from runtime import _core

logger = get_logger(__name__)

_NUM_OWNER_COLOURS = 24
_MAX_CELLS = 1 << 14  # of the block map
_MAX_ROWS = 200  # of the table of requests
_MAX_HOLD_S = 0.02  # until a request is said to be accepted


class EngineHost:
    """Runs the requests of one client on an engine.

    Outputs are gathered by a thread of their own, which also makes their text. One batch is under way at a time: the
    next one is sent once the client has said Ack, so a client that is slower than the engine gets fewer, larger ones.
    That a request is accepted is said with the next tokens of any, or after a moment: on its own it would wake the
    client for each request of a burst while it reads the rest.

    Args:
        send: takes a message to the client; called by the threads of the host, one at a time.
    """

    def __init__(self, engine: Engine, send: Callable[[FromEngine], object]) -> None:
        self._engine = engine
        self._send_unlocked = send
        self._send_lock = threading.Lock()
        self._live: dict[int, _Live] = {}
        self._ready: deque[_Live] = deque()
        self._wake = threading.Event()
        self._is_urgent = threading.Event()  # more than acceptances
        self._credit = threading.Semaphore(1)
        self._queries: queue.SimpleQueue[Query | None] = queue.SimpleQueue()
        self._closing = False
        self.failed = threading.Event()  # the engine has stopped; the client was told
        self._threads = [
            threading.Thread(target=run, name=f"runtime-{name}", daemon=True)
            for name, run in (("outputs", self._send_outputs), ("queries", self._answer_queries))
        ]
        for thread in self._threads:
            thread.start()

    def info(self) -> Info:
        engine = self._engine
        return Info(
            max_model_len=engine.max_model_len,
            vocab_size=engine.vocab_size,
            device=engine.device,
            dtype=engine.dtype,
            step_timeout_s=engine.config.resolve_step_timeout(engine.device),
            block_size=engine.config.block_size,
            num_blocks=engine.stats.num_blocks,
            startup=engine.startup,
        )

    def handle(self, message: ToEngine) -> None:
        """Takes one message of the client; never waits for the engine."""
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Abort):
            live = self._live.get(message.id)
            if live is not None:
                live.abort()
        elif isinstance(message, Ack):
            self._credit.release()
        elif isinstance(message, Query) and message.subject == "health":
            self._send(Answer(message.id, {"busy_s": self._engine.busy_s}))
        elif isinstance(message, Query):
            self._queries.put(message)

    def close(self) -> None:
        """Ends the threads; what still runs is aborted."""
        self._closing = True
        for live in list(self._live.values()):
            live.abort()
        self._queries.put(None)
        self._wake.set()
        self._is_urgent.set()
        self._credit.release()

    def _send(self, message: FromEngine) -> None:
        with self._send_lock:
            self._send_unlocked(message)

    # ---- requests -------------------------------------------------------------------------

    def _submit(self, message: Submit) -> None:
        live = _Live(message, self._engine, self._mark)
        self._live[message.id] = live
        live.start()  # what comes before it is followed is read with this mark
        self._mark(live, is_urgent=live.is_refused)

    def _mark(self, live: _Live, *, is_urgent: bool = True) -> None:
        """There may be something new; mostly called by the engine thread, once a token."""
        if not live.is_marked:
            live.is_marked = True
            self._ready.append(live)
            self._wake.set()
        if is_urgent:
            self._is_urgent.set()

    def _send_outputs(self) -> None:
        while True:
            self._wake.wait()
            self._is_urgent.wait(_MAX_HOLD_S)
            self._credit.acquire()
            self._wake.clear()
            self._is_urgent.clear()
            if self._closing:
                return
            events = list(self._gather())
            if not events:
                self._credit.release()
                continue
            self._send(Outputs(events))
            self._report_death(events)

    def _gather(self) -> Iterator[Event]:
        for _ in range(len(self._ready)):
            live = self._ready.popleft()
            live.is_marked = False  # before it is read: what comes later marks it again
            yield from live.read()
            if live.has_ended:
                self._live.pop(live.id, None)  # two threads may have marked it at once

    def _report_death(self, events: list[Event]) -> None:
        dead = [e.error for e in events if isinstance(e, Refused) and e.error.kind == EngineDeadError.__name__]
        if dead and not self.failed.is_set():
            self._send(Failed(dead[0]))
            self.failed.set()

    def _answer_queries(self) -> None:
        while (query := self._queries.get()) is not None:
            try:
                self._send(Answer(query.id, self._answer(query.subject)))
            except Exception as error:  # of the engine: whoever waits for a request gets it too
                self._send(Answer(query.id, {"error": str(error)}))

    def _answer(self, subject: str) -> dict[str, Any]:
        if subject == "blocks":
            return block_owners(self._engine.snapshot())
        stats = self._engine.stats
        return {name: getattr(stats, name) for name in dir(stats) if name.startswith("num_")}


def block_owners(snapshot: _core.SchedulerSnapshot) -> dict[str, Any]:
    """Who has the KV blocks, for the page.

    Returns:
        requests: rows of (id, phase, prompt_len, num_computed, output_len, number of blocks); phase as in
            SchedulerSnapshot.
        cells: base64, a byte for every `blocks_per_cell` blocks from block 1: 0 free, 1 cached, 2 shared, from 3 on
            owned by one, the same byte for the same request.
    """
    states = np.where(snapshot.is_cached, 1, 0).astype(np.uint8)
    owners = np.repeat(snapshot.request_ids % _NUM_OWNER_COLOURS + 3, snapshot.table_lens)
    states[snapshot.blocks] = owners
    states[snapshot.num_owners > 1] = 2
    stride = -(-(len(states) - 1) // _MAX_CELLS)
    columns = (snapshot.request_ids, snapshot.phases, snapshot.prompt_lens, snapshot.num_computed)
    rows = zip(*(column[:_MAX_ROWS].tolist() for column in (*columns, snapshot.output_lens, snapshot.table_lens)))
    cells = base64.b64encode(states[1::stride].tobytes()).decode()
    return {"requests": list(rows), "cells": cells, "blocks_per_cell": stride}


class _Live:
    """One request. Its scores are told before its tokens.

    `read` is called by the thread that sends outputs, `start` by the one that receives messages.
    """

    def __init__(self, message: Submit, engine: Engine, mark: Callable[[_Live], None]) -> None:
        self.id = message.id
        self.is_marked = False
        self.has_ended = False
        self._message = message
        self._prompt = array.array("i", message.prompt_token_ids).tolist()
        self._engine = engine
        self._mark = mark
        self._is_aborted = False
        self._is_accepted = False
        # prompts of one token have none
        self._awaits_scores = len(self._prompt) > 1 and message.params.get("prompt_logprobs") is not None
        self._error: BaseException | None = None
        self._handle: RequestHandle | None = None
        self._outputs: Subscription | None = None

    def start(self) -> None:
        """Submits it; a refusal is read as its last event."""
        self._try(self._submit)

    @property
    def is_refused(self) -> bool:
        return self._error is not None

    def abort(self) -> None:
        self._is_aborted = True
        if self._handle is not None:
            self._handle.abort()

    def read(self) -> Iterator[Event]:
        """What is new. An exception, such as in making its text, is this request's end and nobody else's."""
        if self.has_ended:
            return
        try:
            yield from self._read()
        except Exception as error:
            logger.exception("request %d failed", self.id)
            self.abort()
            self.has_ended = True
            yield Refused(self.id, to_wire(error))

    def _read(self) -> Iterator[Event]:
        handle = self._handle
        if self._error is None and not self._is_accepted and (handle is None or handle.is_queued):
            self._is_accepted = True
            yield Accepted(self.id)
        if self._error is None and handle is not None:
            yield from self._read_outputs(handle)
        if self._error is not None:
            self.has_ended = True
            yield Refused(self.id, to_wire(self._error))

    def _read_outputs(self, handle: RequestHandle) -> Iterator[Event]:
        assert self._outputs is not None
        ended = handle.done  # before it is read: the last token comes first
        if self._awaits_scores:
            if (positions := handle.prompt_logprobs()) is not None:
                self._awaits_scores = False
                yield Scored(self.id, [_candidates(position or {}) for position in positions])
            elif not ended:
                return
        if self._message.generate:
            for chunk in self._outputs.read():
                yield self._delta(chunk)
        if ended:
            self._outputs.close()
            self._outputs = None  # it knows this object: a cycle
            self._try(handle.raise_error)
            if self._error is None and any(c.finish_reason == "error" for c in handle.completions):
                self._error = Error("the model's logits were not numbers")
            if self._error is None:
                yield from self._end(handle)

    def _end(self, handle: RequestHandle) -> Iterator[Event]:
        self.has_ended = True
        metrics = dataclasses.asdict(handle.metrics())
        yield Ended(self.id, Metrics(**{name: metrics[name] for name in Metrics.__struct_fields__}))

    def _delta(self, chunk: StreamChunk) -> Delta:
        logprobs = None if chunk.logprobs is None else [_candidates(position) for position in chunk.logprobs]
        reason = None if chunk.finish_reason == "error" else chunk.finish_reason  # that comes as a Refused
        return Delta(self.id, chunk.index, chunk.delta, chunk.token_ids, logprobs, reason, chunk.stop_reason)

    def _submit(self) -> None:
        params, options = SamplingParams(**self._message.params), SubmitOptions(**self._message.options)
        if not self._message.generate:
            if not self._awaits_scores:  # one token cannot be scored, and nothing else was asked for
                raise InvalidRequestError("max_tokens", 0, "at least 1 with a prompt of one token", 1)
            params = dataclasses.replace(SCORE_PARAMS, prompt_logprobs=params.prompt_logprobs)
            options = dataclasses.replace(options, score_start=1)
        handle = self._engine.submit(None, self._prompt, params, options)
        self._outputs = Subscription(handle, lambda: self._mark(self))
        self._handle = handle
        if self._is_aborted:
            handle.abort()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._error = error


def _candidates(position: dict[int, Logprob]) -> list[Candidate]:
    return [Candidate(token, p.logprob, p.rank, p.decoded_token or "") for token, p in position.items()]
