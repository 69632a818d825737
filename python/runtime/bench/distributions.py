"""Latencies as a row has them: percentiles by nearest rank, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Seconds = Sequence[float] | npt.NDArray[np.float64]

PERCENTS = (50, 90, 99)
BINS_A_DECADE = 10
_LEAST_MS = 1e-3  # of gaps between tokens that come together


def percentile(values: Seconds, percent: int) -> float:
    """A value that occurred."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[math.ceil(percent * ordered.size / 100) - 1])


def percentiles_ms(name: str, seconds: Seconds, percents: Sequence[int] = PERCENTS) -> dict[str, Any]:
    """`NAME_pN_ms`; nothing where there are no values."""
    if not len(seconds):
        return {}
    return {f"{name}_p{percent}_ms": round(1e3 * percentile(seconds, percent), 3) for percent in percents}


def histogram_ms(seconds: Seconds) -> list[list[float]]:
    """[upper bound in ms, count] of each bin that is not empty; ten bins a decade, equal on a logarithmic scale."""
    milliseconds = np.maximum(1e3 * np.asarray(seconds, dtype=np.float64), _LEAST_MS)
    exponents = np.ceil(BINS_A_DECADE * np.log10(milliseconds)).astype(np.int64)
    bins, counts = np.unique(exponents, return_counts=True)
    uppers = 10.0 ** (bins / BINS_A_DECADE)
    return [[round(float(upper), 4), int(count)] for upper, count in zip(uppers, counts)]
