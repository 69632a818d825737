"""Who may start, and who is served: the scheduler's policies side by side, in simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.simulation import WORKLOADS, Report, Settings, StepTimes, Workload, roofline, simulate
from runtime.simulation.workloads import with_changes

# modes, the first of which the others are compared with, and shares of the pool: what running decodes alone may take,
# and what a predicted peak leaves free; without them the scheduler's own
ADMISSIONS: tuple[dict[str, Any], ...] = (
    {"admission": "none", "watermark": 0.0},  # what fits starts, and nothing is kept for those that run
    {"admission": "none"},
    {"admission": "max_tokens"},
    {"admission": "past_future"},
    {"admission": "past_future", "admission_reserve": 0.06},
    {"admission": "oracle"},
)
KV_TOKENS = 400_000
MAX_TOKENS = 2048  # what a request asks for, if its workload says nothing else
QUEUE_DEPTH = 64  # requests that wait at any time

# prompts and outputs of which the last is all decode: where admission matters most
LENGTHS = {
    "azure-conversation": WORKLOADS["azure-conversation"],
    "arxiv": WORKLOADS["arxiv"],
    "uniform": WORKLOADS["uniform"],
    "decode-heavy": dataclasses.replace(
        WORKLOADS["uniform"], name="decode-heavy", prompt=("uniform", 32, 128), output=("uniform", 1024, 4096)
    ),
}
_LONGEST = {"decode-heavy": 4096}
_MAX_PROMPT_LEN = 8192
_NUM_LIGHT, _TIMES = 3000, 10  # requests of the light tenant; how many more the heavy one sends


def admission(config: str | Path, num_requests: int) -> Iterator[dict[str, Any]]:
    """One row for each workload and mode: a pool of 400k tokens, 1024 requests at most, and a queue that never empties.

    `goodput_ratio` is to the first mode, which starts what fits and preempts whoever came last.

    Args:
        config: folder with the config.json whose roofline gives the step times.
    """
    times = roofline(config, max_num_seqs=1024)
    for name, workload in LENGTHS.items():
        changes = {"num_requests": num_requests, "queue_depth": QUEUE_DEPTH}
        loaded = with_changes(workload, max_tokens=_LONGEST.get(name, MAX_TOKENS), **changes)
        baseline = 0.0
        for chosen in ADMISSIONS:
            options = {key: share for key, share in chosen.items() if key != "admission"}
            settings = _settings(times, admission=chosen["admission"], scheduler_options=options)
            row = _row(simulate(loaded, settings))
            baseline = baseline or row["goodput_per_s"]
            ratio = round(row["goodput_per_s"] / baseline, 3)
            yield {"scenario": f"admission_{name}", **chosen, **row, "goodput_ratio": ratio}


def fairness(config: str | Path) -> Iterator[dict[str, Any]]:
    """Two tenants, all of whose requests wait from the start; one sends ten times as many.

    Served is what has ended when half of the light tenant's requests have under fair sharing.
    """
    times = roofline(config, max_num_seqs=256)
    trace = two_tenants(WORKLOADS["azure-conversation"], _NUM_LIGHT, _TIMES)
    until_s = 0.0
    for policy in ("fair", "fcfs"):
        settings = _settings(times, max_num_seqs=256, scheduler_options={"policy": policy})
        requests = simulate(trace, settings).result.requests
        until_s = until_s or float(np.quantile(_end_s(requests)[requests["tenant"] == 0], 0.5))
        tokens = served_tokens(requests, until_s)
        row = {"scenario": f"fairness_{policy}", "seconds": round(until_s, 1), "served_tokens": tokens.tolist()}
        yield {**row, "jain": round(jain(tokens), 4), "total_tok_s": round(float(tokens.sum()) / until_s, 1)}


def two_tenants(workload: Workload, num_light: int, times: int, seed: int = 0) -> npt.NDArray[Any]:
    """A trace of requests that all come at once: of every `times` + 1, one is tenant 0's and the others tenant 1's.

    Args:
        workload: of lognormal lengths.
    """
    count, rng = num_light * (times + 1), np.random.default_rng(seed)
    prompt, output = (
        rng.lognormal(float(spec[1]), float(spec[-1]), count) for spec in (workload.prompt, workload.output)
    )
    trace = np.zeros(count, dtype=_core.simulated_request)
    trace["prefix_id"] = -1
    trace["prompt_len"] = np.clip(np.rint(prompt), 1, _MAX_PROMPT_LEN)
    trace["output_len"] = np.clip(np.rint(output), 1, MAX_TOKENS)
    trace["max_tokens"] = MAX_TOKENS
    trace["tenant"] = np.arange(count) % (times + 1) != 0
    return trace


def served_tokens(requests: npt.NDArray[Any], until_s: float) -> npt.NDArray[Any]:
    """Tokens, prompts and outputs, of the requests of each tenant that have ended by then."""
    ended = requests[_end_s(requests) <= until_s]
    tokens = ended["prompt_len"].astype(np.int64) + ended["output_len"]
    return np.bincount(ended["tenant"], weights=tokens, minlength=2)


def jain(shares: npt.NDArray[Any]) -> float:
    """Jain's index of fairness: 1 for equal shares, 1 / n where one takes all."""
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def _end_s(requests: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(requests["arrival_s"] + requests["e2e_s"])


def _settings(times: StepTimes, **changes: Any) -> Settings:
    block_size = Settings(step_times=times).block_size
    return Settings(**{"step_times": times, "num_blocks": KV_TOKENS // block_size, "max_num_seqs": 1024, **changes})


def _row(report: Report) -> dict[str, Any]:
    found = report.figures
    return {
        "requests_per_s": round(found["requests_per_s"], 3),
        "goodput_per_s": round(found["goodput_without_1s_gap_per_s"], 3),
        "held_pct": round(100 * found["kv_held_share_queued"], 2),
        "recomputed_pct": round(100 * found["recomputed_share"], 3),
        "preemptions": found["preemptions"],
        "max_gap_p99_ms": round(found["max_gap_ms"]["p99"], 1),
        "tpot_p50_ms": round(found["tpot_ms"]["p50"], 2),
    }
