"""From outcomes to a row.

TTFT: from the scheduled time to the first chunk. TPOT: (end to end - TTFT) / (output tokens - 1). ITL: a gap between
two chunks divided by the tokens of the second, once for each of them. Percentiles are by nearest rank, over the
requests that succeeded; throughput counts their tokens alone.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bench.distributions import histogram_ms, percentiles_ms
from runtime.bench.load.completion_stream import Outcome
from runtime.bench.load.generator import LoadRun

Row = dict[str, Any]
Values = npt.NDArray[np.float64]

BUSY_PCT = 80.0  # of a core, from which on the client's own time is in what it measures


@dataclass(frozen=True)
class Slo:
    """Limits that a request of the goodput keeps, in milliseconds; None: any.

    Args:
        ttft_ms: from the scheduled time.
        itl_ms: mean over the request's tokens, its TPOT.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def is_met(self, request: Served) -> bool:
        """Whether a request keeps every limit that is set."""
        in_time = self.ttft_ms is None or (request.ttft_s is not None and 1e3 * request.ttft_s <= self.ttft_ms)
        return in_time and (self.itl_ms is None or 1e3 * (request.tpot_s or 0.0) <= self.itl_ms)


class Served:
    """A request that succeeded, in seconds from its scheduled time."""

    def __init__(self, outcome: Outcome) -> None:
        chunks = outcome.chunks
        self.late_s = outcome.sent_at - outcome.scheduled_at
        self.e2e_s = outcome.ended_at - outcome.scheduled_at
        self.ttft_s = chunks[0][0] - outcome.scheduled_at if chunks else None
        self.prompt_tokens = outcome.prompt_tokens
        # a server without usage: at least a token a chunk
        self.output_tokens = outcome.output_tokens or len(chunks)
        self.tokens_are_counted = bool(chunks) and all(count for _, count in chunks)
        self._chunks = chunks

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first; None with fewer than two."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    def itl_s(self) -> Values:
        """One value for each token after the first chunk."""
        if len(self._chunks) < 2:
            return np.empty(0)
        times, counts = (np.array(column, dtype=np.float64) for column in zip(*self._chunks))
        if not self.tokens_are_counted:  # as if all chunks were alike
            counts[:] = self.output_tokens / len(counts)
        gaps = np.diff(times) / counts[1:]
        return np.repeat(gaps, np.maximum(counts[1:].round(), 1).astype(np.int64))


def figures(run: LoadRun, slo: Slo) -> Row:
    """What a row has of a run; latencies in milliseconds, rates a second."""
    served = [Served(outcome) for outcome in run.outcomes if outcome.error is None]
    output_tokens = sum(one.output_tokens for one in served)
    total_tokens = output_tokens + sum(one.prompt_tokens for one in served)
    return {
        "requests": len(run.outcomes),
        "succeeded": len(served),
        **_failures(run.outcomes),
        "s": round(run.seconds, 4),
        "requests_per_s": round(len(served) / run.seconds, 3),
        "tok_s": round(output_tokens / run.seconds, 1),
        "counted": "output",
        "total_tok_s": round(total_tokens / run.seconds, 1),
        "prompt_tokens": total_tokens - output_tokens,
        "output_tokens": output_tokens,
        **_latencies(served),
        **_goodput(served, slo, run.seconds),
        **_client(run),
    }


def _failures(outcomes: Sequence[Outcome]) -> Row:
    """Refusals for lack of room apart: they are what a server does about overload, no fault."""
    errors = collections.Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    refused = errors.pop("429", 0)
    row: Row = {"errors": dict(sorted(errors.items())), "refused_429": refused}
    asked = sorted(o.retry_after_s for o in outcomes if o.error == "429" and o.retry_after_s is not None)
    if refused:
        row["with_retry_after"] = len(asked)
    if asked:
        row |= {"retry_after_p50_s": asked[len(asked) // 2], "retry_after_max_s": asked[-1]}
    return row


def _latencies(served: Sequence[Served]) -> Row:
    """From the scheduled time, and for TTFT and end to end from the real sending too."""
    first = [one for one in served if one.ttft_s is not None]
    itl = np.concatenate([one.itl_s() for one in served]) if served else np.empty(0)
    found: dict[str, Sequence[float] | Values] = {
        "ttft": [one.ttft_s or 0.0 for one in first],
        "ttft_from_send": [(one.ttft_s or 0.0) - one.late_s for one in first],
        "tpot": [one.tpot_s for one in served if one.tpot_s is not None],
        "itl": itl,
        "e2e": [one.e2e_s for one in served],
        "e2e_from_send": [one.e2e_s - one.late_s for one in served],
    }
    row: Row = {}
    for name, values in found.items():
        row |= percentiles_ms(name, values)
    if itl.size:
        is_counted = all(one.tokens_are_counted for one in first)
        row |= {"itl_tokens": "counted" if is_counted else "even", "itl_histogram": histogram_ms(itl)}
    return row


def _goodput(served: Sequence[Served], slo: Slo, seconds: float) -> Row:
    if slo == Slo():
        return {}
    good = sum(slo.is_met(one) for one in served)
    limits = {"slo_ttft_ms": slo.ttft_ms, "slo_itl_ms": slo.itl_ms}
    return {
        **{name: limit for name, limit in limits.items() if limit is not None},
        "goodput_per_s": round(good / seconds, 3),
        "slo_met_pct": round(100 * good / len(served), 2) if served else 0.0,
    }


def _client(run: LoadRun) -> Row:
    """How far the generator itself can be trusted."""
    late = np.array([max(o.sent_at - o.scheduled_at, 0.0) for o in run.outcomes])
    return {
        **percentiles_ms("late", late, (50, 99)),
        "late_max_ms": round(1e3 * float(late.max()), 3) if late.size else 0.0,
        "peak_open": run.peak_open,
        "client_cpu_pct": round(100 * run.cpu_s / run.seconds, 1),
    }
