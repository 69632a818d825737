"""The simulator against the engine: the same requests under the virtual clock, beside what was measured."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.bench.rows import Row, read_rows
from runtime.bench.scenarios import OFFLINE, Request, requests_of
from runtime.config import BUILTIN_MODEL
from runtime.errors import ConfigError, did_you_mean
from runtime.simulation import Report, Settings, StepTimes, calibrate, simulate, tile_tokens

CALIBRATED_ON = ("decode_b64", "fixed_1024")
PREDICTED = ("mixed_256", "prefix_512")
_MEASURED = ("s", "ttft_p99_ms", "submit_s", "settings")
_NANOSECONDS = 1e9
# of a row that does not say when its first step was planned: the thread that submits keeps the interpreter so long
_HANDOVER_S = sys.getswitchinterval()


def trace_of(requests: Sequence[Request], submit_s: float = 0.0, first_step_s: float = 0.0) -> npt.NDArray[Any]:
    """The requests as a trace, in their order; dtype `_core.simulated_request`.

    Args:
        submit_s: from the first arrival to the last, at even steps: an engine starts before all have been submitted.
        first_step_s: when the first step was planned; who came until then is there at the start. Of requests that share
            a prefix, those that step takes compute it side by side.
    """
    trace = np.zeros(len(requests), dtype=_core.simulated_request)
    arrival_s = np.linspace(0.0, submit_s, len(requests))
    trace["arrival_ns"] = np.where(arrival_s > first_step_s, arrival_s * _NANOSECONDS, 0.0).astype(np.int64)
    trace["prefix_id"] = [one.prefix_id if one.shared_len else -1 for one in requests]
    trace["prefix_len"] = [one.shared_len for one in requests]
    trace["prompt_len"] = [one.input_len for one in requests]
    # they end by length, which the scheduler knows
    trace["output_len"] = trace["max_tokens"] = [one.output_len for one in requests]
    return trace


def predict(
    scenario: str, times: StepTimes, settings: dict[str, Any], submit_s: float = 0.0, first_step_s: float = 0.0
) -> Report:
    """One scenario under the virtual clock.

    Args:
        settings: arguments of `runtime.simulation.Settings`, as a measured row has them.
    """
    trace = trace_of(requests_of(scenario), submit_s, first_step_s)
    return simulate(trace, Settings(step_times=times, **settings))


def compare(
    step_log: str | Path,
    rows: str | Path,
    *,
    model: str | Path | None = None,
    calibrated_on: Collection[str] = CALIBRATED_ON,
    scenarios: Collection[str] = PREDICTED,
    repeated_tile_share: float = 1.0,
) -> Iterator[Row]:
    """One row a scenario: the newest measured one, its prediction, and the error of the prediction in percent.

    Args:
        step_log: from `runtime bench suite --step-log`.
        rows: .jsonl file of measured rows, from the same device and model.
        model: folder with the model's config.json; None: the built-in model.
        repeated_tile_share: see `runtime.simulation.StepTimes`.

    Raises:
        ConfigError: a scenario was not measured, or not with what a prediction needs.
    """
    model_dir = BUILTIN_MODEL if model is None else Path(model)
    name = "builtin" if model is None else model_dir.resolve().name
    times = calibrate(
        step_log,
        scenarios=calibrated_on,
        tile_tokens=tile_tokens(model_dir),
        repeated_tile_share=repeated_tile_share,
    )
    for scenario in scenarios:
        if scenario not in OFFLINE:
            raise ConfigError(
                f"unknown scenario {scenario!r}{did_you_mean(scenario, OFFLINE)}", hint=", ".join(OFFLINE)
            )
        measured = _newest(Path(rows), scenario, name)
        yield {
            "model": name,
            "scenario": scenario,
            "calibrated_on": list(calibrated_on),
            "step_times": times.source,
            "repeated_tile_share": repeated_tile_share,
            **_beside_prediction(measured, times),
            "measured_on": measured.get("device"),
            "measured_commit": measured.get("commit"),
        }


def _beside_prediction(measured: Row, times: StepTimes) -> Row:
    """Seconds and TTFT of a measured scenario, what the simulator says of them, and its errors."""
    first_step_s = measured.get("first_step_s", _HANDOVER_S)
    starts = measured["submit_s"], first_step_s
    figures = predict(measured["scenario"], times, measured["settings"], *starts).figures
    seconds, ttft_ms = figures["duration_s"], figures["ttft_ms"]["p99"]
    return {
        "first_step_s": first_step_s,
        "measured_s": measured["s"],
        "s": round(seconds, 4),
        "error_pct": _error_pct(seconds, measured["s"]),
        "measured_ttft_p99_ms": measured["ttft_p99_ms"],
        "ttft_p99_ms": round(ttft_ms, 2),
        "ttft_error_pct": _error_pct(ttft_ms, measured["ttft_p99_ms"]),
    }


def _error_pct(predicted: float, measured: float) -> float:
    return round(100 * (predicted / measured - 1), 2)


def _newest(path: Path, scenario: str, model: str) -> Row:
    """The last measured row of a scenario, with what a prediction needs."""
    asked = {"engine": "runtime", "scenario": scenario, "model": model}
    # of the engine that wrote the log and of the requests that are simulated: not deterministic, not scaled down
    found = [
        row for row in read_rows(path) if asked.items() <= row.items() and not {"deterministic", "scale"} & row.keys()
    ]
    if not found:
        raise ConfigError(f"{path} has no measured row of {scenario} with {model}", hint="--model DIR says which model")
    for name in _MEASURED:
        if name not in found[-1]:
            raise ConfigError(f"{path}: the row of {scenario} has no {name}", hint="measure it again with this version")
    return found[-1]
