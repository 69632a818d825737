"""Offline throughput: all requests are there at the start, the last token ends the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.bench.latency import StepClock
from runtime.bench.limits import offline_s, on_paper
from runtime.bench.report import device_name
from runtime.bench.scenarios import Offline, offline_prompts, sampled
from runtime.llm import LLM


@dataclass(frozen=True)
class OfflineRun:
    """One run, in seconds.

    Args:
        seconds: from the first submission to the last token.
        submit_s: from the first submission to the last one, while the engine runs what has come.
        ttft_s: of each request from its submission, sorted.
    """

    seconds: float
    submit_s: float
    ttft_s: Sequence[float]

    def ttft_ms(self, percent: int) -> float:
        """A percentile, by nearest rank."""
        return 1e3 * self.ttft_s[math.ceil(percent * len(self.ttft_s) / 100) - 1]


def run_once(llm: LLM, scenario: Offline) -> OfflineRun:
    """Prompts are made before the clock starts."""
    prompts = offline_prompts(scenario.requests, llm.vocab_size)
    params = [sampled(one.output_len, scenario.temperature) for one in scenario.requests]
    llm.reset_prefix_cache()
    since = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - since
    metrics = [output.metrics for output in outputs]
    ttft_s = sorted(one.ttft_s for one in metrics if one.ttft_s is not None)
    return OfflineRun(seconds, metrics[-1].arrival - metrics[0].arrival, ttft_s)


def measure(llm: LLM, clock: StepClock, scenario: Offline, repeat: int = 3, name: str = "") -> dict[str, Any]:
    """Medians of `repeat` runs after one to warm up: seconds, tokens per second as the scenario counts them, and TTFT.

    `settings` and `submit_s` are what a simulation of the same run needs; see `runtime.bench.simulation`.

    Args:
        llm: with a runner of `timed_runner(clock)`.
        name: of the scenario, for the clock's log.
    """
    runs = []
    for i in range(repeat + 1):  # the first one warms up
        clock.clear()
        runs.append(run_once(llm, scenario))
        if i:
            clock.keep(name)
    seconds = statistics.median(run.seconds for run in runs[1:])
    tok_s = scenario.num_tokens() / seconds
    row = {"dtype": llm.dtype, "s": round(seconds, 4), "tok_s": round(tok_s, 1), "counted": scenario.counted}
    for percent in (50, 99):
        row[f"ttft_p{percent}_ms"] = round(statistics.median(run.ttft_ms(percent) for run in runs[1:]), 2)
    row |= {"submit_s": round(statistics.median(run.submit_s for run in runs[1:]), 4), "settings": settings_of(llm)}
    limit_s = offline_s(on_paper(llm.config.model_dir), scenario, device_name(llm.device))
    if limit_s is not None and llm.config.tensor_parallel_size == 1:  # it is one device's
        row |= {"limit": round(scenario.num_tokens() / limit_s, 1), "pct_of_limit": round(100 * limit_s / seconds, 1)}
    return row


def settings_of(llm: LLM) -> dict[str, int]:
    """What bounds its scheduler, under the names of `runtime.simulation.Settings`."""
    return {
        "max_num_seqs": llm.config.max_num_seqs,
        "max_num_batched_tokens": llm.config.resolve_num_batched_tokens(llm.device),
        "block_size": llm.config.block_size,
        "num_blocks": llm.stats.num_blocks,
        "max_model_len": llm.max_model_len,
        "num_steps_in_flight": llm._engine.num_steps_in_flight,
    }
