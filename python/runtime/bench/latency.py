"""Latency of decode steps: N requests of equal length, token by token."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.bench.distributions import percentiles_ms
from runtime.bench.engine_limits import decode_limit_s
from runtime.bench.engines import BenchEngine, timed_requests
from runtime.bench.figures import decode_step_s, itl_figures, nothing, ttft_s
from runtime.bench.progress import progress
from runtime.bench.rows import Row
from runtime.bench.scenarios import MIN_DECODE_LEN, Scenario
from runtime.bench.step_clock import PHASES
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.bench.engines.own import OwnEngine


def require_decode_steps(scenario: Scenario) -> None:
    """Refuses outputs that leave no step to time.

    Raises:
        ConfigError
    """
    if scenario.output_len < MIN_DECODE_LEN:
        raise ConfigError(
            f"--out={scenario.output_len}: must be at least {MIN_DECODE_LEN}, for there to be steps of decodes alone"
        )


def measure(engine: BenchEngine, scenario: Scenario, repeat: int = 3, after_run: Callable[[], object] = nothing) -> Row:
    """Mean milliseconds of a step in which all requests decode, the median of `repeat` runs; `limit` in ms.

    Args:
        after_run: called after each run that counts, those after the first.
    """
    requests, runs = timed_requests(engine, scenario.requests), []
    with progress(repeat + 1, "run") as done:
        for i in range(repeat + 1):  # the first one warms up
            times = engine.run(requests, every_token=True)
            done()
            if i:
                after_run()
                runs.append(times)
    steps_s = [decode_step_s(times) for times in runs]
    step_s = statistics.median(steps_s)
    row: Row = {"dtype": engine.dtype, "tpot_ms": round(step_s * 1e3, 4), "tok_s": round(scenario.batch / step_s, 1)}
    row["runs"] = {"tpot_ms": [round(one * 1e3, 4) for one in steps_s]}
    together = [one for times in runs for one in times]
    row |= percentiles_ms("ttft", ttft_s(together), (50, 99)) | itl_figures(together)
    limit_s = decode_limit_s(engine, scenario)
    return row if limit_s is None else row | _limit(limit_s, step_s)


def gaps(engine: OwnEngine, scenario: Scenario) -> Row:
    """What lies between two steps of one run on CUDA; see `GapLog.figures`.

    Args:
        engine: opened with `gaps`.
    """
    import torch

    requests = timed_requests(engine, scenario.requests)
    for _ in range(2):  # the first one warms up
        engine.run(requests)
    torch.cuda.synchronize()
    batches = engine.clock.batches
    steps = [i for i in range(len(batches) - 1) if batches[i] == batches[i + 1] == scenario.batch]
    return {"dtype": engine.dtype, "steps": len(steps), **engine.clock.gaps.figures(steps)}


def overhead(engine: OwnEngine, scenario: Scenario, num_steps: int = 1000) -> Row:
    """A step's wall time minus the time inside prepare_step, model and sampler, as medians over `num_steps` steps.

    On a CPU, where these run inside the step.

    Args:
        engine: opened with `phases`.
    """
    requests = timed_requests(engine, scenario.requests)
    engine.run(requests)  # warms up
    steps: list[tuple[float, dict[str, float]]] = []
    while len(steps) < num_steps:
        engine.run(requests)
        found = engine.clock.decode_steps(scenario.batch)
        if not found:
            raise ConfigError(f"no step decoded all {scenario.batch} requests", hint="raise --out")
        steps = [*steps, *found][-num_steps:]
    rest = [wall - sum(phases.values()) for wall, phases in steps]
    return {
        "dtype": engine.dtype,
        "steps": len(steps),
        "step_us": _median_us([wall for wall, _ in steps]),
        **{f"{name}_us": _median_us([phases[name] for _, phases in steps]) for name in PHASES},
        "overhead_us": _median_us(rest),
    }


def fit(scenario: Scenario) -> dict[str, int]:
    """Arguments of an engine in which all requests of the scenario run together."""
    return {"max_num_seqs": scenario.batch, "max_model_len": scenario.input_len + scenario.output_len}


def _limit(limit_s: float, step_s: float) -> dict[str, float]:
    return {"limit": round(limit_s * 1e3, 4), "pct_of_limit": round(100 * limit_s / step_s, 1)}


def _median_us(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e6, 1)
