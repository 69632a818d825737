"""Many scenarios on one engine: loading a model once is most of what a measurement costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bench import latency, throughput
from runtime.bench.engines import BenchEngine, open_engine
from runtime.bench.figures import nothing, shape_of
from runtime.bench.rows import Row, environment
from runtime.bench.scenarios import (
    LATENCY,
    OFFLINE,
    STARTUP,
    Offline,
    Request,
    Scenario,
    fit,
    latency_scenario,
    offline_scenario,
)
from runtime.errors import ConfigError, did_you_mean
from runtime.simulation import StepLog

GAPS = "_gaps"  # decode_b256_gaps: what lies between that scenario's steps


@dataclass(frozen=True)
class Bench:
    """An engine, a model and how often to measure.

    Args:
        model: folder of a checkpoint; None: the built-in model.
        arguments: of `EngineConfig`; max_num_seqs and max_model_len are otherwise what the scenarios need.
        scale: see `Scenario.scaled`.
        repeat: runs, of which the median counts.
    """

    engine: str = "runtime"
    model: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    repeat: int = 3
    scale: int = 1

    def open(self, fitted: Mapping[str, Any], **options: Any) -> BenchEngine:
        """With room for what `fit` was asked about.

        Args:
            options: what only the runtime's own adapter takes.
        """
        return open_engine(self.engine, self.model, {**fitted, **self.arguments}, **options)

    def row(self, engine: BenchEngine, scenario: str, figures: Row) -> Row:
        """With what was measured, how and where around the figures."""
        head: Row = {
            "engine": self.engine,
            "model": Path(self.model).resolve().name if self.model else "builtin",
            "tp": engine.tensor_parallel_size,
            "scenario": scenario,
        }
        if self.arguments.get("deterministic"):
            head["deterministic"] = True
        if "all_reduce_overlap" in self.arguments:
            head["overlap"] = self.arguments["all_reduce_overlap"]
        if "NCCL_MAX_CTAS" in os.environ:
            head["nccl_max_ctas"] = os.environ["NCCL_MAX_CTAS"]
        if self.scale > 1:
            head["scale"] = self.scale
        return {**head, **figures, **environment(engine.device, engine.versions)}

    def decode(self, name: str) -> Scenario:
        """A scenario of decode steps, at this bench's scale."""
        return latency_scenario(name).scaled(self.scale)

    def offline(self, name: str) -> Offline:
        """A scenario whose requests are all there at the start, at this bench's scale."""
        return offline_scenario(name).scaled(self.scale)

    def requests_of(self, name: str) -> tuple[Request, ...]:
        """The requests of either kind."""
        return (self.decode(name) if name in LATENCY else self.offline(name)).requests


def scenario_names() -> list[str]:
    """All that `--scenarios` takes."""
    return [STARTUP, *LATENCY, *(name + GAPS for name in LATENCY), *OFFLINE]


def sizes(requests: Sequence[Request]) -> Row:
    """The columns of a row that say what was asked: `batch`, `in` and `out`."""
    return {
        "batch": len(requests),
        **shape_of([one.input_len for one in requests], [one.output_len for one in requests]),
    }


def run(bench: Bench, names: Sequence[str], step_log: str | Path | None = None) -> Iterator[Row]:
    """One row a scenario; those with gaps come last.

    Args:
        step_log: file for the steps of the measured runs, those with gaps left out.

    Raises:
        ConfigError: an unknown scenario, or one that only the runtime has.
    """
    _check(bench, names, step_log)
    # events between steps cost a little, so steps are not timed on the engine that records them
    timed = [name for name in names if not name.endswith(GAPS)]
    if timed:
        log = None if step_log is None else StepLog(step_log)
        try:
            yield from _run_timed(bench, timed, log)
        finally:
            if log is not None:
                log.close()
    with_gaps = [name for name in names if name.endswith(GAPS)]
    if with_gaps:
        yield from _run_gaps(bench, with_gaps)


def _check(bench: Bench, names: Sequence[str], step_log: str | Path | None) -> None:
    for name in names:
        if name not in scenario_names():
            raise ConfigError(
                f"unknown scenario {name!r}{did_you_mean(name, scenario_names())}", hint=", ".join(scenario_names())
            )
        if name.endswith(GAPS) and bench.engine != "runtime":
            raise ConfigError(f"{name}: only --engine runtime shows what lies between its steps")
    if step_log is not None and bench.engine != "runtime":
        raise ConfigError(f"--step-log: only --engine runtime records its steps, and {bench.engine} was chosen")


def _fit(bench: Bench, names: Sequence[str]) -> dict[str, int]:
    """Arguments of an engine that serves all of them, one scenario at a time."""
    fits = [fit(bench.requests_of(name.removesuffix(GAPS))) for name in names if name != STARTUP]
    return {key: max(one[key] for one in fits) for key in fits[0]} if fits else {}


def _run_timed(bench: Bench, names: Sequence[str], log: StepLog | None) -> Iterator[Row]:
    since = time.perf_counter()
    options, keep = _recorder(log)
    engine = bench.open(_fit(bench, names), **options)
    started = time.perf_counter() - since
    try:
        for name in names:
            if name == STARTUP:
                yield bench.row(engine, name, {"dtype": engine.dtype, "s": round(started, 2)})
            else:
                yield bench.row(engine, name, measure(bench, engine, name, keep(name)))
    finally:
        engine.close()


def measure(bench: Bench, engine: BenchEngine, name: str, after_run: Callable[[], object] = nothing) -> Row:
    """The figures of one scenario, with the sizes of its requests."""
    shape = sizes(bench.requests_of(name))
    if name in LATENCY:
        return shape | latency.measure(engine, bench.decode(name), bench.repeat, after_run)
    return shape | throughput.measure(engine, bench.offline(name), bench.repeat, after_run)


def _recorder(log: StepLog | None) -> tuple[dict[str, Any], Callable[[str], Callable[[], object]]]:
    """(options of the engine, what to call after each run of a scenario)."""
    if log is None:
        return {}, lambda name: nothing
    from runtime.bench.step_clock import StepClock

    clock = StepClock(log)
    return {"clock": clock}, lambda name: lambda: clock.keep(name)


def _run_gaps(bench: Bench, names: Sequence[str]) -> Iterator[Row]:
    engine: Any = bench.open(_fit(bench, names), gaps=True)
    try:
        for name in names:
            chosen = bench.decode(name.removesuffix(GAPS))
            yield bench.row(engine, name, sizes(chosen.requests) | latency.gaps(engine, chosen))
    finally:
        engine.close()
