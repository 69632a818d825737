"""Runs a simulation and reports what it saw."""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.errors import ConfigError
from runtime.simulation.step_times import StepTimes
from runtime.simulation.workloads import Workload

ROUTERS = ("round_robin", "least_work", "prefix_aware")
Trace = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What serves the requests: replicas of one engine.

    Args:
        step_times: of its device.
        num_blocks: of the KV pool of one replica; None: as many as `step_times` says fit.
        cpu_kv_tokens: tokens that its CPU tier holds; 0: there is none.
        cpu_bandwidth: bytes a second between device and CPU tier.
        num_steps_in_flight: 2 plans a step while the one before runs, as the engine does; 1 does not.
        admission: which requests start; "oracle" knows the true lengths.
        admission_reserve: share of the blocks that a predicted peak leaves free; None: the scheduler's own.
        target_itl_ms: prompt chunks keep steps that also decode below it; 0: off.
        scheduler_options: further arguments of `_core.SchedulerConfig`.
        num_replicas, router: of a fleet.
        report_interval_s: seconds after which the router learns what has ended.
        num_threads: that simulate a fleet; the result does not depend on it.
        event_log: file to record the events and decisions of one replica in, for `replay`.
    """

    step_times: StepTimes
    num_blocks: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16
    max_model_len: int = 16384
    enable_prefix_caching: bool = True
    cpu_kv_tokens: int = 0
    cpu_bandwidth: float = 2.5e10
    num_steps_in_flight: int = 2
    admission: str = "past_future"
    admission_reserve: float | None = None
    target_itl_ms: float = 0.0
    scheduler_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_replicas: int = 1
    router: str = "least_work"
    report_interval_s: float = 0.05
    num_threads: int = 1
    event_log: str | None = None

    def replica(self) -> _core.ReplicaConfig:
        """One replica's compiled settings.

        Raises:
            ConfigError
        """
        num_blocks = self.num_blocks
        if num_blocks is None:
            if self.step_times.kv_tokens is None:
                raise ConfigError("the size of the KV pool is not known", hint="give --kv-tokens or --num-blocks")
            num_blocks = self.step_times.kv_tokens // self.block_size
        options = self.step_times.recompute_costs() | (self._tier() if self.cpu_kv_tokens else {})
        options |= self.scheduler_options
        if self.admission_reserve is not None:
            options["admission_reserve"] = self.admission_reserve
        if self.target_itl_ms:
            options |= {"target_itl_ms": self.target_itl_ms, "step_time": self.step_times.model()}
        scheduler = _core.SchedulerConfig(
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.block_size,
            self.max_model_len,
            1 << 15,
            enable_prefix_caching=self.enable_prefix_caching,
            num_steps_in_flight=self.num_steps_in_flight,
            admission=self.admission,
            **options,
        )
        return _core.ReplicaConfig(scheduler, num_blocks, self.step_times.model(), event_log=self.event_log or "")

    def _tier(self) -> dict[str, Any]:
        kv_bytes = self.step_times.kv_bytes_per_token
        if kv_bytes is None:
            raise ConfigError(
                "cpu_kv_tokens: how many bytes a token's KV has is not known",
                hint="kv_bytes_per_token in the calibration file says it",
            )
        if self.cpu_kv_tokens < self.block_size:
            raise ConfigError(f"cpu_kv_tokens={self.cpu_kv_tokens}: must be 0 or at least a block of {self.block_size}")
        if not self.cpu_bandwidth > 0:
            raise ConfigError(f"cpu_bandwidth={self.cpu_bandwidth:g}: must be above 0 bytes a second")
        transfer_s = kv_bytes * self.block_size / self.cpu_bandwidth
        return {"num_host_blocks": self.cpu_kv_tokens // self.block_size, "transfer_block_s": transfer_s}

    def fleet(self) -> _core.FleetConfig:
        """Of all replicas, each as `replica` says; ConfigError for what cannot work."""
        return _core.FleetConfig(
            self.replica(),
            num_replicas=self.num_replicas,
            router=self.router,
            report_interval_s=self.report_interval_s,
            num_threads=self.num_threads,
        )


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Most milliseconds that a request may take: to its first token, for each further one, in all, between two."""

    ttft_ms: float = math.inf
    tpot_ms: float = math.inf
    e2e_ms: float = math.inf
    gap_ms: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"slo {name}={value:g}: must be above 0 milliseconds")

    def limits(self) -> dict[str, float]:
        """Those that are set."""
        return {name: value for name, value in vars(self).items() if value < math.inf}

    def seconds(self) -> dict[str, float]:
        """All four, unlimited ones as infinity, under the names of `_core.SimulationResult.summary`."""
        return {name.replace("_ms", "_s"): value / 1e3 for name, value in vars(self).items()}


@dataclass(frozen=True)
class Report:
    """What a simulation saw. `figures` is one JSON object; `result` has every request and a timeline."""

    figures: dict[str, Any]
    result: _core.SimulationResult

    def write_csv(self, path: str | Path) -> None:
        """One line for each request."""
        requests = self.result.requests
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(requests.dtype.names or ())
            writer.writerows(requests.tolist())

    def plot(self, path: str | Path) -> None:
        """Requests and KV blocks over time, and the distributions of latencies; needs matplotlib.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        from runtime.simulation.plots import plot

        plot(self.result, path)


def simulate(workload: Workload | Trace, settings: Settings, slo: Slo | None = None) -> Report:
    """Serves a workload, or a trace of `read_trace`, in virtual time.

    Raises:
        ConfigError: settings or requests that cannot work.
    """
    slo = slo or Slo()
    requests = workload.core() if isinstance(workload, Workload) else workload
    begin, begin_cpu = time.perf_counter(), time.process_time()
    if settings.num_replicas == 1:
        result = _core.simulate(settings.replica(), requests)
    else:
        result = _core.simulate_fleet(settings.fleet(), requests)
    cost = {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - begin_cpu}
    speed = result.totals.num_steps / max(cost["cpu_s"], 1e-9)
    return Report(_figures(result, slo) | cost | {"steps_per_cpu_s": speed}, result)


def _figures(result: _core.SimulationResult, slo: Slo) -> dict[str, Any]:
    totals = result.totals
    computed = max(result.num_scheduled_tokens, 1)
    gaps = np.asarray(result.requests["max_gap_s"])
    done = result.requests["is_done"] == 1
    return {
        **result.summary(**slo.seconds()),
        "slo": slo.limits(),
        "goodput_without_1s_gap_per_s": float(np.sum(done & (gaps <= 1.0))) / max(result.duration_s, 1e-9),
        "duration_s": result.duration_s,
        "busy_share": result.busy_share,
        "kv_held_share": result.held_share,
        "kv_held_share_queued": result.held_share_queued,
        "kv_cached_share": result.cached_share,
        "preemptions": totals.num_preemptions,
        "swaps": totals.num_swaps,
        "evicted_blocks": totals.num_evictions,
        "stored_blocks": totals.num_stored_blocks,
        "loaded_blocks": totals.num_loaded_blocks,
        "computed_tokens": result.num_scheduled_tokens,
        "recomputed_tokens": totals.num_recomputed_tokens,
        "recomputed_share": totals.num_recomputed_tokens / computed,
        "wasted_tokens": result.num_wasted_tokens,
        "steps": totals.num_steps,
    }
