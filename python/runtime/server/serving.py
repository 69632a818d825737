"""What the endpoints share: engine, tokenizer, limits, and what is known of the state of things."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from runtime.errors import CapacityError, ConfigError
from runtime.server.client import EngineClient
from runtime.server.config import ServerConfig
from runtime.server.http_errors import HttpError
from runtime.server.json_body import BodyBudget, BodyLease, read_object
from runtime.server.metrics import ServerMetrics
from runtime.server.overload import MAX_WAIT_S, Overload
from runtime.server.protocol import Parsed
from runtime.server.tool_caller import ToolCaller
from runtime.server.turnstile import Turnstile
from runtime.start_timer import StartTimer
from runtime.tokenizer import Tokenizer

T = TypeVar("T")

_NUM_TEXT_THREADS = 2
_SHORT_TEXT = 2048  # characters or tokens: a fraction of a millisecond
_MAX_STARTS_A_TURN = 16  # requests that are read, tokenised and sent to the engine, a fraction of a millisecond each
_MAX_PING_INTERVAL_S = 1.0
_MAX_SILENCE_S = 10.0
_MAX_RETRY_AFTER_S = 60
_STATS_TIMEOUT_S = 0.25


class Serving:
    """One server's state.

    Args:
        engine: started.
        tokenizer: None: prompts are token ids, answers have no text.
        timer: of this process's start, in which the engine's is the phase "engine".
    """

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer | None,
        config: ServerConfig,
        model: str,
        timer: StartTimer | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.model = model
        self.created = int(time.time())
        self.metrics = ServerMetrics()
        self.is_draining = False
        self.is_closing = asyncio.Event()  # ends what never ends by itself
        self.num_requests = 0  # generations that are being answered
        self._tokenizer = tokenizer
        self._timer = timer or StartTimer("engine")
        self._tool_caller = None if tokenizer is None else ToolCaller(config.tool_call_parser, tokenizer)
        self._busy_s = 0.0
        self._overload = Overload(engine.queue_wait)
        self._bodies = BodyBudget(config.max_pending_body_bytes)
        self._starts = Turnstile(_MAX_STARTS_A_TURN)
        self._text_threads = ThreadPoolExecutor(_NUM_TEXT_THREADS, thread_name_prefix="runtime-text")
        self._json_thread = ThreadPoolExecutor(1, thread_name_prefix="runtime-json")

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ConfigError(
                "this needs a tokenizer, and the server runs without one", hint="--no-skip-tokenizer-init"
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tool_caller(self) -> ToolCaller:
        caller, _ = self._tool_caller, self.tokenizer  # which says what is missing
        assert caller is not None
        return caller

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Work on text, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, function)

    async def on_text(self, length: int, function: Callable[[], T]) -> T:
        """Work on so many characters or tokens; beside the event loop unless they are few.

        A thread's answer waits for a turn of the loop, in which a burst of other requests may be ahead.
        """
        return function() if length <= _SHORT_TEXT else await self.in_thread(function)

    async def decode_each(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token alone."""
        tokenizer = self.tokenizer
        return await self.in_thread(lambda: [tokenizer.decode([t], skip_special_tokens=False) for t in token_ids])

    async def read_object(self, request: Request, understand: Callable[[dict[str, Any]], T]) -> T:
        """What is understood of a request's body, within the limits; it is held until `release_body`.

        Args:
            understand: called on the event loop, or beside it when the body is large.
        """
        config, lease = self.config, self._bodies.lease()
        request.scope["state"]["body"] = lease
        await self._starts.enter()
        return await read_object(
            request,
            understand,
            lease,
            self._json_thread,
            max_bytes=config.max_body_bytes,
            timeout_s=config.body_timeout,
        )

    @staticmethod
    def release_body(scope: Scope) -> None:
        """Its room may be taken by others. Idempotent."""
        lease: BodyLease | None = scope["state"].get("body")
        if lease is not None:
            lease.give_back()

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise HttpError(
                404, f"there is no model {name[:200]!r} here; there is {self.model!r}", "model_not_found", param="model"
            )

    def check_accepting(self) -> None:
        if self.is_draining:
            raise HttpError(503, "the server is shutting down", "draining", headers={"connection": "close"})

    # ---- start ------------------------------------------------------------------------------

    def started(self) -> None:
        """It listens."""
        self._timer.stop()

    @property
    def startup(self) -> list[dict[str, float]]:
        """Seconds of each phase, a dict a rank: rank 0 with the server's own."""
        first, *others = self.engine.info.startup
        own = self._timer.seconds
        waiting = max(own.get("engine", 0.0) - sum(first.values()), 0.0)  # for its process
        return [{**{f"server_{name}": s for name, s in own.items()}, "server_engine": waiting, **first}, *others]

    def check_room(self, scope: Scope, parsed: Parsed) -> None:
        """CapacityError: so many more would be too many, or would wait for longer than they may. Once a request."""
        is_overloaded = self._overload.refuses(scope["state"]["arrived_at"])  # which counts them all
        self.engine.check_room(parsed.params.n)
        max_wait_s, deadline_s = self.config.max_queue_time, parsed.options.deadline_s
        for limit_s, name in ((max_wait_s, "--max-queue-time"), (deadline_s, "deadline_s")):
            if limit_s is not None and self.engine.queue_wait.exceeds(limit_s):
                raise self._would_wait(f"{name} is {limit_s} s")
        if is_overloaded and max_wait_s is None and not parsed.has_own_deadline:
            raise self._would_wait(f"more come than end, so {MAX_WAIT_S} s is the limit (deadline_s, --max-queue-time)")
        scope["state"]["is_open"] = True

    def release(self, scope: Scope) -> None:
        """The request is over: whatever it took may be taken by others."""
        self.release_body(scope)
        if scope["state"].get("is_open"):
            self._overload.end()

    def _would_wait(self, limit: str) -> CapacityError:
        wait_s = self.engine.queue_wait.expected_s()
        message = f"a request that comes now would wait {wait_s:.1f} s for its first token; {limit}"
        return CapacityError(message, hint="retry later")

    # ---- health -----------------------------------------------------------------------------

    @property
    def silence_limit_s(self) -> float:
        """How long the engine's process may say nothing: it answers within milliseconds, whatever a step takes."""
        return min(self.engine.info.step_timeout_s / 2, _MAX_SILENCE_S)

    @property
    def trouble(self) -> str | None:
        """Why the engine makes no progress; None: it does, or has nothing to do."""
        if self.engine.dead.done():
            return str(self.engine.dead.result())
        if self.engine.silent_s > self.silence_limit_s:
            return f"the engine's process has not answered for {self.engine.silent_s:.1f} s"
        if self._busy_s > self.engine.info.step_timeout_s:
            return f"a step has been running for {self._busy_s:.1f} s"
        return None

    async def watch_engine(self) -> None:
        """Asks the engine for a sign of life, again and again; to be cancelled."""
        while True:
            answer = await self.engine.query("health", self.silence_limit_s)
            if answer is not None:
                self._busy_s = float(answer.get("busy_s", 0.0))
            await asyncio.sleep(min(self.silence_limit_s / 4, _MAX_PING_INTERVAL_S))

    async def refresh_stats(self) -> Mapping[str, Any]:
        """The scheduler's counts: new ones, or where a long step is running the last."""
        answer = await self.engine.query("stats", _STATS_TIMEOUT_S)
        if answer is not None and "error" not in answer:
            self.metrics.saw_stats(answer)
        return self.metrics.stats

    async def block_owners(self) -> Mapping[str, Any]:
        """Requests and the owners of KV blocks, see `host.block_owners`; nothing where a long step is running."""
        answer = await self.engine.query("blocks", _STATS_TIMEOUT_S)
        return {} if answer is None or "error" in answer else answer

    def retry_after_s(self) -> int:
        """Seconds after which a request that is refused now may find room."""
        wait_s = max(self.metrics.recent_queue_s, self.engine.queue_wait.expected_s())
        return min(max(1, math.ceil(wait_s)), _MAX_RETRY_AFTER_S)

    async def close(self) -> None:
        self.is_closing.set()
        for threads in (self._text_threads, self._json_thread):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._tokenizer is not None:
            with contextlib.suppress(OSError):
                self._tokenizer.close()
