"""A picture of a simulation; the only place that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime import _core
from runtime.errors import ConfigError


def plot(result: _core.SimulationResult, path: str | Path) -> None:
    """Writes one figure; the file's name says which format.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "plots need matplotlib, which is not installed", hint="pip install runtime-llm[bench]"
        ) from None
    figure = Figure(figsize=(10, 9), layout="constrained")
    load, blocks, latency = figure.subplots(3)
    timeline = result.timeline
    for name in ("num_running", "num_waiting"):
        load.plot(timeline["time_s"], timeline[name], label=name.removeprefix("num_"))
    for name in ("num_held_blocks", "num_cached_blocks"):
        share = timeline[name] / max(result.totals.num_blocks, 1)
        blocks.plot(timeline["time_s"], share, label=name.removeprefix("num_").removesuffix("_blocks"))
    _latencies(result, latency)
    for axes, what in ((load, "requests"), (blocks, "share of KV blocks"), (latency, "share of requests")):
        axes.set_ylabel(what)
        axes.set_xlabel("seconds")
        axes.legend()
    figure.savefig(path)


def _latencies(result: _core.SimulationResult, axes: Any) -> None:
    done = result.requests[result.requests["is_done"] == 1]
    for name in ("ttft_s", "e2e_s", "max_gap_s"):
        axes.ecdf(done[name], label=name.removesuffix("_s"))
    axes.set_xscale("log")
