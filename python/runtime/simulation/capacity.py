"""The highest rate of arrivals that meets an SLO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import ConfigError
from runtime.simulation.run import Report, Settings, Slo, simulate
from runtime.simulation.workloads import Workload

_MAX_RATE = 1e6  # requests a second


@dataclass(frozen=True)
class Capacity:
    """`rate` requests a second meet the SLO; `report` is of that rate, `tried` has (rate, share that met it)."""

    rate: float
    report: Report
    tried: list[tuple[float, float]]


def find_capacity(
    workload: Workload, settings: Settings, slo: Slo, *, share: float = 0.99, tolerance: float = 0.02
) -> Capacity:
    """Doubles the rate until the SLO fails, then bisects.

    Args:
        workload: its own rate is where the search begins, if it has one.
        share: of the requests that must meet every limit of `slo`.
        tolerance: relative, of the rate.

    Raises:
        ConfigError: no limit is set, one request at a time fails already, or no rate that can be simulated does.
    """
    if not slo.limits():
        raise ConfigError("no SLO to meet", hint="give --slo-ttft-ms, --slo-tpot-ms, --slo-e2e-ms or --slo-gap-ms")
    if not 0 < share <= 1:
        raise ConfigError(f"share={share:g}: must be above 0 and at most 1", hint="--slo-share; default: 0.99")
    _require_possible(workload, settings, slo, share)
    tried: list[tuple[float, float]] = []
    passed: tuple[float, Report] | None = None

    def meets(rate: float) -> bool:
        nonlocal passed
        report = simulate(dataclasses.replace(workload, rate=rate, concurrency=0, queue_depth=0), settings, slo)
        tried.append((rate, report.figures["slo_share"]))
        if report.figures["slo_share"] < share:
            return False
        passed = (rate, report)
        return True

    low, high = _bracket(workload.rate or 1.0, meets, slo)
    while high > low * (1 + tolerance):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if meets(middle) else (low, middle)
    assert passed is not None
    return Capacity(*passed, tried)


def _bracket(start: float, meets: Callable[[float], bool], slo: Slo) -> tuple[float, float]:
    """A rate that meets the SLO, and one of twice that which does not."""
    rate = min(max(start, 1 / 64), _MAX_RATE)
    if meets(rate):
        while rate < _MAX_RATE:
            rate *= 2
            if not meets(rate):
                return rate / 2, rate
        raise ConfigError(
            f"the SLO {_text(slo.limits())} holds at {_MAX_RATE:g} requests a second: nothing to find",
            hint="more --num-requests, or a tighter SLO",
        )
    while rate > 1e-4:
        rate /= 2
        if meets(rate):
            return rate, rate * 2
    raise ConfigError(f"the SLO {_text(slo.limits())} fails even at {rate:g} requests a second", hint="lower --cv")


def _require_possible(workload: Workload, settings: Settings, slo: Slo, share: float) -> None:
    """One request at a time sees the shortest times there are."""
    alone = dataclasses.replace(workload, rate=None, concurrency=1, queue_depth=0)
    figures = simulate(alone, dataclasses.replace(settings, num_replicas=1), slo).figures
    if figures["slo_share"] >= share:
        return
    figure_of = {"gap_ms": "max_gap_ms"}  # the others have the name of their limit
    seen = {name: round(figures[figure_of.get(name, name)]["p99"], 3) for name in slo.limits()}
    raise ConfigError(
        f"the SLO {_text(slo.limits())} cannot be met by {share:.0%} of the requests: "
        f"one at a time, {figures['slo_share']:.1%} meet it and the 99th percentiles are {_text(seen)}",
        hint="loosen the --slo flags",
    )


def _text(limits: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in limits.items())
