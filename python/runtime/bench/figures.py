"""Figures from the times of tokens, by one definition for every engine.

TTFT: the first token less what it counts from (`RequestTimes.due_s`). TPOT: (last - first) / (tokens - 1), a request.
ITL: the gap between two tokens of a request. Percentiles are by nearest rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from runtime.bench.distributions import histogram_ms, percentiles_ms
from runtime.bench.engines import RequestTimes
from runtime.errors import ConfigError


def nothing() -> None:
    """What is called when nobody wants to know."""


def decode_step_s(times: Sequence[RequestTimes]) -> float:
    """Mean seconds of a step in which every request decodes: from the last first token to the first last one.

    Args:
        times: of one run, with every token.

    Raises:
        ConfigError: there was no such step.
    """
    youngest = max(times, key=lambda one: one.token_s[0])
    start, end = youngest.token_s[0], min(one.token_s[-1] for one in times)
    within = [moment for moment in youngest.token_s[1:] if moment <= end]
    if not within:
        raise ConfigError(
            f"no step decoded all {len(times)} requests: the first one ended before the last one began",
            hint="raise --out, or --max-num-batched-tokens for fewer steps of prompts",
        )
    return (within[-1] - start) / len(within)


def ttft_s(times: Iterable[RequestTimes]) -> list[float]:
    """Seconds to the first token, of the requests that have one."""
    return [one.first_s - one.due_s for one in times if one.first_s is not None]


def tpot_s(times: Iterable[RequestTimes]) -> list[float]:
    """Of the requests with more than one token; every token's time must be known."""
    return [(one.token_s[-1] - one.token_s[0]) / (len(one.token_s) - 1) for one in times if len(one.token_s) > 1]


def e2e_s(times: Iterable[RequestTimes]) -> list[float]:
    """Seconds to the last token."""
    return [one.last_s - one.due_s for one in times]


def itl_figures(times: Iterable[RequestTimes]) -> dict[str, Any]:
    """Percentiles and a histogram of the gaps between tokens."""
    gaps = np.concatenate([np.diff(one.token_s) for one in times])
    if not gaps.size:
        return {}
    return percentiles_ms("itl", gaps) | {"itl_histogram": histogram_ms(gaps)}


def shape_of(input_lens: Sequence[int], output_lens: Sequence[int]) -> dict[str, Any]:
    """`in` and `out` of a row: what all requests have, or the mean."""
    return {"in": _common(input_lens), "out": _common(output_lens)}


def _common(lens: Sequence[int]) -> int | float:
    return lens[0] if len(set(lens)) == 1 else round(sum(lens) / len(lens), 1)
