"""Many scenarios on one engine: loading a model once is most of what a measurement costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.bench import latency, throughput
from runtime.bench.scenarios import LATENCY, OFFLINE, fit, latency_scenario, offline_scenario, requests_of
from runtime.errors import ConfigError, did_you_mean
from runtime.simulation import StepLog

GAPS = "_gaps"  # decode_b256_gaps: what lies between that scenario's steps
STARTUP = "startup"
Row = dict[str, Any]


def scenario_names() -> list[str]:
    return [STARTUP, *LATENCY, *(name + GAPS for name in LATENCY), *OFFLINE]


def run(
    model: str | None,
    names: Sequence[str],
    arguments: dict[str, Any],
    repeat: int = 3,
    step_log: str | Path | None = None,
) -> Iterator[Row]:
    """One row a scenario, without head and environment; those with gaps come last.

    Args:
        arguments: of `LLM`, but the two that the scenarios decide, max_num_seqs and max_model_len.
        step_log: file for the steps of the measured runs, those with gaps left out.
    """
    for name in names:
        if name not in scenario_names():
            raise ConfigError(
                f"unknown scenario {name!r}{did_you_mean(name, scenario_names())}", hint=", ".join(scenario_names())
            )
    # events between steps cost a little, so steps are not timed on the engine that records them
    timed = [name for name in names if not name.endswith(GAPS)]
    if timed:
        log = None if step_log is None else StepLog(step_log)
        try:
            yield from _run_timed(model, timed, {**_fit(timed), **arguments}, repeat, log)
        finally:
            if log is not None:
                log.close()
    with_gaps = [name for name in names if name.endswith(GAPS)]
    if with_gaps:
        yield from _run_gaps(model, with_gaps, {**_fit(with_gaps), **arguments})


def _fit(names: Sequence[str]) -> dict[str, int]:
    """Arguments of an LLM that serves all of them."""
    fits = [fit(requests_of(name.removesuffix(GAPS))) for name in names if name != STARTUP]
    if not fits:
        return {}
    return {key: max(one[key] for one in fits) for key in fits[0]}


def _run_timed(
    model: str | None, names: Sequence[str], arguments: dict[str, Any], repeat: int, log: StepLog | None
) -> Iterator[Row]:
    clock = latency.StepClock(log)
    since = time.perf_counter()
    with latency.engine_for(model, arguments, clock) as llm:
        started = time.perf_counter() - since
        for name in names:
            if name == STARTUP:
                yield {"scenario": name, "dtype": llm.dtype, "s": round(started, 2)}
            elif name in LATENCY:
                chosen = latency_scenario(name)
                sizes = {"batch": chosen.batch, "in": chosen.input_len, "out": chosen.output_len}
                yield {"scenario": name, **sizes, **latency.measure(llm, clock, chosen, repeat, name)}
            else:
                offline = offline_scenario(name)
                found = throughput.measure(llm, clock, offline, repeat, name)
                yield {"scenario": name, "batch": len(offline.requests), **found}


def _run_gaps(model: str | None, names: Sequence[str], arguments: dict[str, Any]) -> Iterator[Row]:
    clock = latency.StepClock()
    with latency.engine_for(model, arguments, clock, gaps=True) as llm:
        for name in names:
            chosen = latency_scenario(name.removesuffix(GAPS))
            sizes = {"batch": chosen.batch, "in": chosen.input_len, "out": chosen.output_len}
            yield {"scenario": name, **sizes, **latency.gaps(llm, clock, chosen)}
