"""The engine: one thread that schedules, runs and emits, step after step."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from runtime.config import EngineConfig
from runtime.engine.commands import Commands
from runtime.engine.device import making_context, resolve_device
from runtime.engine.intake import Intake
from runtime.engine.knobs import Knobs
from runtime.engine.loading import LoadedModel, load_model
from runtime.engine.masks import MaskedSteps
from runtime.engine.memory_use import Memory
from runtime.engine.model_runner import ModelRunner, Step
from runtime.engine.output_processor import OutputProcessor
from runtime.engine.pinned_prefix import PinnedPrefix
from runtime.engine.rank_group import start_ranks
from runtime.engine.request import RequestHandle
from runtime.engine.submission import SubmitOptions
from runtime.engine.watchdog import Watchdog
from runtime.errors import (
    ConfigError,
    EngineDeadError,
    RequestAborted,
    for_this_caller,
)
from runtime.log import get_logger
from runtime.sampling_params import SamplingParams
from runtime.start_timer import StartTimer

if TYPE_CHECKING:
    from runtime import _core
    from runtime.tokenizer import Tokenizer

logger = get_logger(__name__)

_IDLE_WAIT_S = 1.0
_CLOSE_TIMEOUT_S = 10.0
_COPY_POLL_S = 50e-6
_KNOBS = Knobs()


class Engine:
    """Owns model, scheduler and the thread between them. Every public method may be called from any thread.
    `startup` has seconds of each phase of the start, a dict a rank, those that `timer` brings included.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError, CapacityError: from the constructor, once loading has failed.
        EngineDeadError: from the constructor, once a rank is lost.
    """

    def __init__(self, config: EngineConfig, knobs: Knobs = _KNOBS, timer: StartTimer | None = None) -> None:
        self._timer = timer or StartTimer("device")
        self._timer.enter("device")
        self.device = resolve_device(config.device)
        self.config = config.for_device(self.device)
        self.tokenizer: Tokenizer | None
        self.max_model_len: int
        self.vocab_size: int
        self.dtype: str
        self.num_steps_in_flight: int
        self.memory: Memory
        self.startup: list[dict[str, float]]
        self._knobs = knobs
        self._scheduler: _core.Scheduler
        self._runner: ModelRunner
        self._outputs: OutputProcessor
        self._intake: Intake
        self._masked: MaskedSteps
        self._step_timeout_s = self.config.resolve_step_timeout(self.device)
        self._commands = Commands()
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._closing = threading.Event()
        self._timer.enter("ranks")
        self._ranks = start_ranks(self.config, self.device)
        self._watchdog = Watchdog(self._step_timeout_s, self._ranks, self._give_up)
        self._thread = threading.Thread(target=self._main, name="runtime-engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def stats(self) -> _core.SchedulerStats:
        """Counts of the scheduler as of its last step."""
        found: _core.SchedulerStats = self.call(self._scheduler.stats)
        return found

    def snapshot(self) -> _core.SchedulerSnapshot:
        """Requests and the owners of KV blocks, between two steps."""
        found: _core.SchedulerSnapshot = self.call(self._scheduler.snapshot)
        return found

    @property
    def busy_s(self) -> float:
        """Seconds since the newest step was launched; 0 while nothing runs. Waits for nothing."""
        return 0.0 if (since := self._watchdog.busy_since) is None else time.monotonic() - since

    def submit(
        self,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        options: SubmitOptions = SubmitOptions(),  # noqa: B008 - frozen
    ) -> RequestHandle:
        """Queues a request and returns at once.

        Raises:
            InvalidRequestError: the scheduler refuses it for good.
            CapacityError: the queue is full.
            ConfigError: structured_outputs cannot be used here. What is wrong with a grammar is the request's error.
            EngineDeadError, RequestAborted: the engine has stopped, or was closed.
        """
        self._require_alive()
        return self._intake.submit(prompt, prompt_token_ids, params, options)

    def prepare_grammars(self) -> None:
        """Has a thread build what structured outputs need, where they can be used: the first of them waits for less.

        That takes most of a second for a vocabulary of 128k, during which no other thread runs Python.
        """
        self._intake.prepare_grammars()

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes."""
        self.call(self._scheduler.reset_prefix_cache)

    def pin_prefix(self, prompt: str | None, prompt_token_ids: Sequence[int], cache_salt: str = "") -> PinnedPrefix:
        """Computes a prompt and keeps its full blocks.

        Raises:
            ConfigError, CapacityError, InvalidRequestError, EngineDeadError, RequestAborted
        """
        if not self.config.enable_prefix_caching:
            raise ConfigError("pin_prefix needs a prefix cache", hint="enable_prefix_caching=True")
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        self.submit(prompt, prompt_token_ids, params, SubmitOptions(cache_salt=cache_salt)).result()
        scheduler = self._scheduler
        pin_id, num_tokens = self.call(lambda: scheduler.pin(prompt_token_ids, cache_salt=cache_salt))
        return PinnedPrefix(num_tokens, lambda: bool(self.call(lambda: scheduler.unpin(pin_id))))

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs a function in the engine thread, between two steps; returns its result."""
        self._require_alive()
        future = self._commands.add(function)
        self._scheduler.wake()
        if self._error is not None:
            self._cancel_commands()
        return future.result()

    def close(self) -> None:
        """Stops the thread; requests that still run end with RequestAborted. Idempotent."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._scheduler.wake()
            self._thread.join(_CLOSE_TIMEOUT_S if self._error is None else 0.0)  # a hung step never ends
        self._end_ranks()
        self._intake.close()
        if self.tokenizer is not None:
            self.tokenizer.close()

    # ---- the thread -----------------------------------------------------------------------

    def _require_alive(self) -> None:
        if self._error is not None:
            raise for_this_caller(self._error)
        if self._closing.is_set():
            raise RequestAborted("the engine is closed")

    def _main(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self._error = self._error or self._ranks.cause_of(error)
            self._end_ranks()
            return
        finally:
            self._started.set()
        try:
            with torch.inference_mode():
                self._loop()
            self._die(RequestAborted("the engine is closed"))
        except BaseException as error:
            cause = self._ranks.cause_of(error)
            if cause is error:
                logger.error("a step failed", exc_info=True)
            self._die(cause)
            self._ranks.abort(str(cause))
        finally:
            self._cancel_commands()
            self._scheduler.stop_recording()
            del self._runner, self._masked
            gc.collect()  # runner and graphs refer to each other; NCCL does not end before its kernels' last graph
            self._end_ranks()
            if self.device == "cuda":
                torch.cuda.empty_cache()  # for the next engine, which counts what the device has left

    def _start(self) -> None:
        self._timer.enter("device")
        if self.device == "cuda":  # of this thread; graphs are not captured on the default stream
            with making_context():
                torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        self.num_steps_in_flight = steps = self._knobs.num_steps_in_flight or (2 if self.device == "cuda" else 1)
        self._timer.enter("ranks")
        loaded = load_model(self.config, self.device, self._ranks.join(), self._timer)
        self._describe(loaded)
        if self.device == "cpu":
            torch.set_num_threads(loaded.num_threads)
        self._scheduler = loaded.make_scheduler(num_steps_in_flight=steps, preempt_every=self._knobs.preempt_every)
        self._timer.enter("tokenizer")  # its form for grammars
        self._intake = Intake(loaded, self._scheduler, lambda: self._error)
        self._outputs = self._intake.outputs
        self._timer.enter("runner")
        with loaded.meter.guard(loaded.plan):
            self._make_runner(loaded, num_plan_buffers=steps + 1)
        self._ranks.serve(self._runner)
        self._masked = MaskedSteps(self._runner, self._outputs.live, self._intake.fail)
        self.memory = loaded.meter.compare(loaded.plan, loaded.model.mem_manager.kv_cache.nbytes)
        logger.info("ready in %.1f s", sum(self.startup[0].values()))

    def _make_runner(self, loaded: LoadedModel, *, num_plan_buffers: int) -> None:
        sizes = loaded.peers.told(num_plan_buffers=num_plan_buffers, plan_capacity=self._scheduler.plan_capacity)
        self._runner = loaded.make_runner(self._knobs.runner_class, **sizes)
        self._scheduler.attach_plan_buffers(self._runner.plan_buffers)
        self.startup = loaded.make_ready(self._runner)

    def _describe(self, loaded: LoadedModel) -> None:
        self.tokenizer = loaded.tokenizer
        self.max_model_len = loaded.max_model_len
        self.vocab_size = loaded.model.vocab_size
        self.dtype = str(loaded.model.dtype).removeprefix("torch.")
        self._tp_group = loaded.peers.tp_group

    def _loop(self) -> None:
        in_flight: deque[Step] = deque()
        emit_late = self._runner.is_async  # while the next step runs
        retired: tuple[_core.StepResult, Step | None] | None = None
        while not self._closing.is_set() and self._error is None:
            self._commands.run()
            self._intake.expire()
            self._finish_copies()
            self._launch(in_flight)
            if retired is not None:
                self._outputs.process(*retired)
                retired = None
            if in_flight:
                step = in_flight.popleft()
                retired = (self._retire(step, in_flight), step)
                if not emit_late:
                    self._outputs.process(*retired)
                    retired = None
            else:
                self._outputs.process(self._scheduler.take_events(), None)
                self._wait()
        for step in in_flight:  # it still writes what is freed next
            if step.held is not None:
                self._runner.sample_held(step, [])
            step.wait(self._step_timeout_s, self._tp_group)
        self._runner.wait_for_copies(self._step_timeout_s)

    def _wait(self) -> None:
        """Nothing can run before somebody asks, or a copy is done."""
        if self._runner.is_copying:
            time.sleep(_COPY_POLL_S)  # a copy that hangs is seen as a step that does
        else:
            self._watchdog.busy_since = None
            self._scheduler.wait(_IDLE_WAIT_S)

    def _finish_copies(self) -> None:
        for step in self._runner.take_done_copies():
            self._scheduler.transfer_done(step)

    def _retire(self, step: Step, behind: deque[Step]) -> _core.StepResult:
        step.wait(self._step_timeout_s, self._tp_group)
        self._masked.take(step)
        if behind and behind[0].held is not None:
            self._masked.sample(behind[0])
        return self._scheduler.update(step.number, step.token_ids)

    def _launch(self, in_flight: deque[Step]) -> None:
        while len(in_flight) < self.num_steps_in_flight:
            buffer = self._scheduler.schedule()
            if buffer < 0:
                return
            self._watchdog.busy_since = time.monotonic()
            self._ranks.publish(buffer)
            in_flight.append(step := self._runner.launch(buffer))
            if step.held is not None:
                self._masked.enter(step, self._scheduler.masked_rows())
                if len(in_flight) == 1:
                    self._masked.sample(step)

    def _cancel_commands(self) -> None:
        self._commands.cancel(self._error or RequestAborted("the engine is closed"))

    def _die(self, error: BaseException) -> None:
        """Every waiting caller gets the cause; nothing is accepted any more."""
        if self._error is None:  # set before: who submits now finds it, whoever did before is found below
            known = isinstance(error, (EngineDeadError, RequestAborted)) or not self._started.is_set()
            self._error = error if known else EngineDeadError(error)
        if self._started.is_set():
            self._outputs.fail_all(self._error)

    def _give_up(self, error: BaseException) -> None:
        """Watchdog's thread: this one may hang."""
        self._die(error)
        self._started.set()

    def _end_ranks(self) -> None:
        self._watchdog.stop()
        self._ranks.stop()
