"""`EngineClient`: requests on an engine, from an event loop; the engine is in this process or in a child of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.engine.submission import SubmitOptions
from runtime.errors import (
    CapacityError,
    EngineDeadError,
    Error,
    RequestAborted,
    for_this_caller,
    prompt_too_long,
)
from runtime.log import get_logger
from runtime.sampling_params import SamplingParams
from runtime.server.messages import (
    Abort,
    Ack,
    Answer,
    Delta,
    Ended,
    Event,
    Failed,
    FromEngine,
    Info,
    Outputs,
    Query,
    Refused,
    Scored,
    Submit,
    ToEngine,
    from_wire,
)
from runtime.server.queue_wait import QueueWait
from runtime.structured_outputs import StructuredOutputsParams

logger = get_logger(__name__)

_EVENTS_A_TURN = 32


class Stream:
    """The events of one request."""

    def __init__(self, request_id: int, num_completions: int, ready: asyncio.Event) -> None:
        self.id = request_id
        self.num_completions = num_completions
        self.has_ended = False
        self._events: list[Event] = []
        self._ready = ready
        self._error: Error | None = None

    @property
    def is_complete(self) -> bool:
        return self.has_ended and not self._events and self._error is None

    def take(self) -> list[Event]:
        """Everything since the last call.

        Raises:
            Error: the request was refused or failed, or the engine has stopped; after all events before that.
        """
        events, self._events = self._events, []
        if not events and self._error is not None:
            raise for_this_caller(self._error)
        return events

    def put(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.fail(from_wire(event.error))
        else:
            self._events.append(event)
            self.has_ended = isinstance(event, Ended)
            self._ready.set()

    def fail(self, error: Error) -> None:
        self._error, self.has_ended = error, True
        self._ready.set()


class Streams:
    """Requests that one reader waits for together."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._ready = asyncio.Event()
        self._streams: list[Stream] = []

    def submit(self, prompt_token_ids: Sequence[int], **request: Any) -> None:
        """As `EngineClient.submit`; one that is refused ends the others."""
        try:
            self._streams.append(self._client.submit(prompt_token_ids, ready=self._ready, **request))
        except Error:
            self.abort()
            raise

    async def read(self) -> list[tuple[int, Event]]:
        """Waits; (index of the request, event) of everything since the last call, [] once all have ended.

        Raises:
            Error: a request was refused or failed; the others are aborted.
        """
        while True:
            self._ready.clear()
            has_ended = all(stream.has_ended for stream in self._streams)
            events = self._take()
            if events or has_ended:
                return events
            await self._ready.wait()

    @property
    def is_complete(self) -> bool:
        """All have ended without an error, and everything was read."""
        return all(stream.is_complete for stream in self._streams)

    def abort(self) -> None:
        """Ends all that still run; whoever reads gets RequestAborted. Idempotent."""
        for stream in self._streams:
            self._client.abort(stream)

    def _take(self) -> list[tuple[int, Event]]:
        try:
            return [(index, event) for index, stream in enumerate(self._streams) for event in stream.take()]
        except Error:
            self.abort()
            raise


class EngineClient(ABC):
    """Submits, aborts and asks. All methods are called on the event loop that `start` ran on.

    Args:
        max_open: completions that may be open before `submit` refuses more; None: as many as the engine takes.
    """

    def __init__(self, max_open: int | None = None) -> None:
        self.info: Info
        self.dead: asyncio.Future[EngineDeadError] = asyncio.get_running_loop().create_future()
        self.num_open = 0  # completions
        self.queue_wait = QueueWait()
        self._max_open = max_open
        self._streams: dict[int, Stream] = {}
        self._unrouted: deque[Event] = deque()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._last_answer_at = time.monotonic()
        self._is_closing = False

    @abstractmethod
    async def start(self) -> None:
        """Waits until the engine is ready.

        Raises:
            Error: what the constructor of `LLM` raises; EngineDeadError when the process ended.
        """

    @abstractmethod
    def _send(self, message: ToEngine) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """Ends the engine; requests that still run end with RequestAborted. Idempotent."""

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        ready: asyncio.Event,
        num_completions: int = 1,
        generate: bool = True,
    ) -> Stream:
        """Queues a request; it may still be refused by its first event. `ready` is set at every event.

        Raises:
            InvalidRequestError: it is longer than max_model_len.
            CapacityError: too many are open.
            EngineDeadError, RequestAborted: the engine has stopped, or was closed.
        """
        self._require_alive()
        if len(prompt_token_ids) > self.info.max_model_len:  # not worth the way to the engine
            raise prompt_too_long(len(prompt_token_ids), self.info.max_model_len - 1)
        self.check_room(num_completions)
        stream = Stream(next(self._ids), num_completions, ready)
        self._streams[stream.id] = stream
        self.num_open += num_completions
        self.queue_wait.arrive(stream.id, num_completions)
        prompt = np.asarray(prompt_token_ids, dtype=np.int32).tobytes()
        self._send(Submit(stream.id, prompt, dict(params), dict(options), generate))
        return stream

    def check_room(self, num_completions: int) -> None:
        """CapacityError: so many more would be too many."""
        if self._max_open is not None and self.num_open + num_completions > self._max_open:
            raise CapacityError(
                f"{self.num_open} completions run or wait already, {num_completions} more were asked for; "
                f"the limit is {self._max_open}",
                hint="retry later, or raise --max-queued-requests",
            )

    def abort(self, stream: Stream) -> None:
        """Ends a request; whoever reads it gets RequestAborted. Idempotent."""
        if stream.has_ended:
            return
        self._forget(stream)
        stream.fail(RequestAborted("the request was aborted"))
        if self.is_alive:
            self._send(Abort(stream.id))

    async def query(self, subject: str, timeout_s: float) -> dict[str, Any] | None:
        """The engine's answer; None: there was none in time."""
        query = Query(next(self._ids), subject)
        answer = self._answers[query.id] = asyncio.get_running_loop().create_future()
        try:
            self._require_alive()
            self._send(query)
            return await asyncio.wait_for(answer, timeout_s)
        except (asyncio.TimeoutError, Error):
            return None
        finally:
            self._answers.pop(query.id, None)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's process last said anything."""
        return time.monotonic() - self._last_answer_at

    @property
    def is_alive(self) -> bool:
        return not self.dead.done() and not self._is_closing

    # ---- for the transports -----------------------------------------------------------------

    def _receive(self, message: FromEngine) -> None:
        self._last_answer_at = time.monotonic()
        if isinstance(message, Outputs):
            # first tokens first: a reader who has some waits more easily; each request's own stay in their order
            self._unrouted.extend(sorted(message.events, key=lambda event: not self.queue_wait.has(event.id)))
            self._route_some()
        elif isinstance(message, Answer):
            answer = self._answers.get(message.id)
            if answer is not None and not answer.done():
                answer.set_result(message.value)
        elif isinstance(message, Failed):
            error = from_wire(message.error)
            self._die(error if isinstance(error, EngineDeadError) else EngineDeadError(str(error)))

    def _route_some(self) -> None:
        """A few events a turn of the loop, which also runs the tasks that they wake, so that no turn takes long."""
        loop = asyncio.get_running_loop()
        for _ in range(min(_EVENTS_A_TURN, len(self._unrouted))):
            self._route(self._unrouted.popleft())
        if self._unrouted:
            loop.call_soon(self._route_some)
        else:  # after those tasks: an engine that is ahead of the writers waits for them
            loop.call_soon(loop.call_soon, self._acknowledge)

    def _acknowledge(self) -> None:
        if self.is_alive:
            self._send(Ack())

    def _route(self, event: Event) -> None:
        stream = self._streams.get(event.id)
        if stream is None:
            return  # aborted
        stream.put(event)
        if isinstance(event, (Delta, Scored)):
            self.queue_wait.start(event.id)
        if stream.has_ended:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self.num_open -= stream.num_completions
            self.queue_wait.leave(stream.id)

    def _die(self, error: EngineDeadError) -> None:
        """The engine has stopped: everyone who waits is told, after what it still said. The first cause counts."""
        while self._unrouted:
            self._route(self._unrouted.popleft())
        if not self.dead.done():
            self.dead.set_result(error)
        self.fail_all(error)

    def fail_all(self, error: Error) -> None:
        """Every reader gets the error. The engine is not told."""
        for stream in list(self._streams.values()):
            self._forget(stream)
            stream.fail(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)

    def _require_alive(self) -> None:
        if self.dead.done():
            raise for_this_caller(self.dead.result())
        if self._is_closing:
            raise RequestAborted("the engine is closed")


def as_arguments(params: SamplingParams) -> dict[str, Any]:
    """The arguments that make an equal SamplingParams: those that are not the default."""
    given = {name: getattr(params, name) for name in params.__dataclass_fields__ if name not in _DERIVED}
    given["structured_outputs"] = params.structure
    return {name: _plain(value) for name, value in given.items() if value != getattr(_DEFAULT, name)}


_DEFAULT = SamplingParams()
_DERIVED = ("numbers", "stop_strings", "bad_word_strings", "structure")


def _plain(value: Any) -> Any:
    if isinstance(value, StructuredOutputsParams):
        return value.as_arguments()
    return dict(value) if isinstance(value, Mapping) else value


def options_as_arguments(options: SubmitOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}
