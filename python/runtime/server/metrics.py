"""What Prometheus reads: the scheduler's counts as they stand, and times of the requests that were served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime.server.messages import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NUM_RECENT = 200
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

# name: (field of SchedulerStats, help)
_GAUGES = {
    "num_requests_waiting": ("num_waiting", "Requests that wait, preempted ones included."),
    "num_requests_running": ("num_running", "Requests that hold a row."),
    "num_kv_blocks": ("num_blocks", "KV blocks."),
    "num_cached_kv_blocks": ("num_cached_blocks", "KV blocks in the prefix cache."),
}
_COUNTERS = {
    "prompt_tokens": ("num_prompt_tokens", "Prompt tokens of requests that started."),
    "cached_prompt_tokens": ("num_cached_tokens", "Of those, found in the prefix cache."),
    "generation_tokens": ("num_output_tokens", "Tokens sampled."),
    "prefix_cache_queries": ("num_prefix_queries", "Requests that looked for a cached prefix."),
    "prefix_cache_hits": ("num_prefix_hits", "Of those, that found one."),
    "num_preemptions": ("num_preemptions", "Running requests sent back to wait."),
    "engine_steps": ("num_steps", "Steps of the model."),
}


class ServerMetrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._stats: Mapping[str, Any] = {}
        self._queue_s = 0.0  # of late
        self._ttfts: deque[float] = deque(maxlen=_NUM_RECENT)
        self._itls: deque[float] = deque(maxlen=_NUM_RECENT)
        self._registry.register(self)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"runtime:{name}", text, buckets=buckets, registry=self._registry)

        self._ttft = histogram("time_to_first_token_seconds", "From arrival at the engine to the first token.", _LONG_S)
        self._itl = histogram("inter_token_latency_seconds", "Between two tokens of a completion, as sent.", _SHORT_S)
        self._e2e = histogram("e2e_request_latency_seconds", "From arrival at the engine to the end.", _LONG_S)
        self._queue = histogram("request_queue_time_seconds", "From arrival to the first step.", _LONG_S)
        self._ended = Counter("runtime:requests", "Requests by how they ended.", ["outcome"], registry=self._registry)

    @property
    def recent_queue_s(self) -> float:
        """How long requests waited of late."""
        return self._queue_s

    @property
    def recent_ttft_s(self) -> float | None:
        """Median of the last requests."""
        return median(self._ttfts) if self._ttfts else None

    @property
    def recent_itl_s(self) -> float | None:
        return median(self._itls) if self._itls else None

    @property
    def stats(self) -> Mapping[str, Any]:
        """The scheduler's counts as last seen."""
        return self._stats

    def saw_stats(self, stats: Mapping[str, Any]) -> None:
        self._stats = stats

    def saw_tokens(self, count: int, seconds: float) -> None:
        """So many tokens came, so long after the one before."""
        self._itls.append(seconds / count)
        for _ in range(count):
            self._itl.observe(seconds / count)

    def saw_end(self, metrics: Metrics) -> None:
        for histogram, value in (
            (self._ttft, metrics.ttft_s),
            (self._e2e, metrics.e2e_s),
            (self._queue, metrics.queue_s),
        ):
            if value is not None:
                histogram.observe(value)
        if metrics.ttft_s is not None:
            self._ttfts.append(metrics.ttft_s)
        if metrics.queue_s is not None:
            self._queue_s += 0.1 * (metrics.queue_s - self._queue_s)
        self.saw_outcome("finished")

    def saw_outcome(self, outcome: str) -> None:
        """ "finished", or the code of the error that ended the request."""
        self._ended.labels(outcome).inc()

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """prometheus_client: the metrics that are the scheduler's own counts."""
        stats = self._stats
        for name, (field, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"runtime:{name}", text, value=stats.get(field, 0))
        for name, (field, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"runtime:{name}", text, value=stats.get(field, 0))
        blocks = stats.get("num_blocks", 0)
        used = 1.0 - stats.get("num_free_blocks", 0) / blocks if blocks else 0.0
        yield GaugeMetricFamily("runtime:kv_cache_usage_perc", "Share of KV blocks that requests hold, 0 to 1.", used)
