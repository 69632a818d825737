"""The runtime's own engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from runtime import __version__
from runtime.bench.engines import RequestTimes, TimedRequest, sleep_until
from runtime.bench.scenarios import sampled
from runtime.bench.step_clock import StepClock, timed_runner
from runtime.config import BUILTIN_MODEL, EngineConfig
from runtime.engine import Knobs, RequestHandle, SubmitOptions
from runtime.llm import LLM


class OwnEngine:
    """An LLM whose steps `clock` sees.

    Args:
        clock: forgets the steps of a run when the next one begins.
        phases, gaps: what else it looks at; see `timed_runner`.
    """

    ARGUMENTS: ClassVar = frozenset(field.name for field in dataclasses.fields(EngineConfig))

    def __init__(
        self,
        model_dir: Path,
        arguments: Mapping[str, Any],
        *,
        clock: StepClock | None = None,
        phases: bool = False,
        gaps: bool = False,
    ) -> None:
        self.clock = clock or StepClock()
        knobs = Knobs(runner_class=timed_runner(self.clock, phases=phases, gaps=gaps))
        model = None if model_dir == BUILTIN_MODEL else str(model_dir)
        self.llm = LLM._with_knobs(knobs, model, **{**arguments, "skip_tokenizer_init": True})
        self.model_dir, self.tensor_parallel_size = model_dir, self.llm.config.tensor_parallel_size
        self.device, self.dtype = self.llm.device, self.llm.dtype

    @property
    def versions(self) -> dict[str, str]:
        return {"runtime": __version__}

    @property
    def settings(self) -> dict[str, int]:
        """What bounds its scheduler, under the names of `runtime.simulation.Settings`."""
        llm = self.llm
        return {
            "max_num_seqs": llm.config.max_num_seqs,
            "max_num_batched_tokens": llm.config.resolve_num_batched_tokens(llm.device),
            "block_size": llm.config.block_size,
            "num_blocks": llm.stats.num_blocks,
            "max_model_len": llm.max_model_len,
            "num_steps_in_flight": llm._engine.num_steps_in_flight,
        }

    def run(
        self, requests: Sequence[TimedRequest], temperature: float = 0.0, *, every_token: bool = False
    ) -> list[RequestTimes]:
        self.llm.reset_prefix_cache()
        self.clock.clear()
        params = [sampled(one.output_len, temperature) for one in requests]
        token_s: list[list[float]] = [[] for _ in requests]
        sent, handles = [], []
        start = time.perf_counter()
        for one, param, times in zip(requests, params, token_s):
            if one.arrival_s:
                sleep_until(start + one.arrival_s)
            sent.append(time.perf_counter() - start)
            options = SubmitOptions(listener=partial(_note, times, start)) if every_token else SubmitOptions()
            handles.append(self.llm._engine.submit(None, one.prompt_token_ids, param, options))
        return [_times(*one) for one in zip(requests, sent, handles, token_s)]

    def close(self) -> None:
        self.llm.close()


def _note(times: list[float], start: float, handle: RequestHandle) -> None:
    """A listener: it is called for every token, and once more at the end."""
    if not handle.done:
        times.append(time.perf_counter() - start)


def _times(request: TimedRequest, sent_s: float, handle: RequestHandle, token_s: list[float]) -> RequestTimes:
    metrics = handle.result().metrics
    due_s = sent_s if request.arrival_s is None else request.arrival_s
    first_s = None if metrics.ttft_s is None else sent_s + metrics.ttft_s
    scheduled_s = None if metrics.queue_s is None else sent_s + metrics.queue_s
    return RequestTimes(sent_s, due_s, first_s, sent_s + (metrics.e2e_s or 0.0), token_s, scheduled_s)
