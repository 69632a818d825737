"""Throughput of many requests: all there at the start, and the last token ends the clock; or an open loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from runtime.bench.distributions import percentile, percentiles_ms
from runtime.bench.engine_limits import offline_limit_s
from runtime.bench.engines import BenchEngine, RequestTimes, timed_requests
from runtime.bench.figures import e2e_s, itl_figures, nothing, tpot_s, ttft_s
from runtime.bench.progress import progress
from runtime.bench.rows import Row
from runtime.bench.scenarios import Offline

_NUM_WARM_UP = 16  # requests


def measure(engine: BenchEngine, scenario: Offline, repeat: int = 3, after_run: Callable[[], object] = nothing) -> Row:
    """Medians of `repeat` runs after one to warm up: seconds, tokens per second as the scenario counts them, and TTFT.

    `settings`, `submit_s` and `first_step_s` are what a simulation of the same run needs; see
    `runtime.bench.simulation`.

    Args:
        after_run: called after each run that counts.
    """
    requests, runs = timed_requests(engine, scenario.requests), []
    with progress(repeat + 1, "run") as done:
        for i in range(repeat + 1):  # the first one warms up
            times = engine.run(requests, scenario.temperature)
            done()
            if i:
                after_run()
                runs.append(times)
    seconds = statistics.median(map(_seconds, runs))
    row: Row = {"dtype": engine.dtype, "s": round(seconds, 4), **_rate(scenario, seconds), **_ttft_ms(runs)}
    row["runs"] = {"s": [round(_seconds(times), 4) for times in runs]}
    if engine.settings:
        row |= {**_starts(runs), "settings": dict(engine.settings)}
    limit_s = offline_limit_s(engine, scenario)
    if limit_s is not None:
        row |= {"limit": round(scenario.num_tokens() / limit_s, 1), "pct_of_limit": round(100 * limit_s / seconds, 1)}
    return row


def open_loop(engine: BenchEngine, scenario: Offline) -> Row:
    """One run in which requests come when they are due, after one of some of them, at once, to warm up.

    Percentiles of TTFT, from when a request was due, of TPOT, ITL and E2E.
    """
    requests = timed_requests(engine, scenario.requests)
    engine.run([replace(one, arrival_s=None) for one in requests[:_NUM_WARM_UP]], scenario.temperature)
    times = engine.run(requests, scenario.temperature, every_token=True)
    seconds = _seconds(times)
    row: Row = {"dtype": engine.dtype, "s": round(seconds, 4), **_rate(scenario, seconds)}
    row["requests_per_s"] = round(len(requests) / seconds, 3)
    for name, values in (("ttft", ttft_s(times)), ("tpot", tpot_s(times)), ("e2e", e2e_s(times))):
        row |= percentiles_ms(name, values)
    return row | itl_figures(times)


def _starts(runs: Sequence[Sequence[RequestTimes]]) -> dict[str, float]:
    """From the first request's submission to the last one's, and to the first step's plan."""
    submit_s = statistics.median(times[-1].sent_s - times[0].sent_s for times in runs)
    scheduled = [[one.scheduled_s for one in times if one.scheduled_s is not None] for times in runs]
    first_step_s = statistics.median(min(found) - times[0].sent_s for found, times in zip(scheduled, runs))
    return {"submit_s": round(submit_s, 4), "first_step_s": round(first_step_s, 4)}


def _seconds(times: Sequence[RequestTimes]) -> float:
    """From the start to the last token."""
    return max(one.last_s for one in times)


def _rate(scenario: Offline, seconds: float) -> Row:
    return {"tok_s": round(scenario.num_tokens() / seconds, 1), "counted": scenario.counted}


def _ttft_ms(runs: Sequence[Sequence[RequestTimes]]) -> dict[str, float]:
    found = [ttft_s(times) for times in runs]
    if not all(found):  # the engine does not say
        return {}
    return {f"ttft_p{p}_ms": round(1e3 * statistics.median(percentile(one, p) for one in found), 2) for p in (50, 99)}
