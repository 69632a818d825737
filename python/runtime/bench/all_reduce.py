"""Sums over GPUs in a captured graph, by size: one-shot, two-shot and NCCL, alone and with the norm behind.

`measure` starts a process for each rank: python -m runtime.bench.all_reduce RANK SIZE, with the group's id on stdin.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import CommunicatorError, ConfigError
from ..kernels import ops
from ..parallel import TpGroup, init_tp_group, make_unique_id
from .gpu_timing import microseconds

Row = dict[str, Any]

HIDDEN = 4096
ROWS = [1 << i for i in range(11)]  # of 8 KiB
TOLERANCE = 1.02  # what two measurements of the same differ by
LIMIT_S = 150.0
WAIT_S = 60.0


def measure(num_ranks: int) -> Iterator[Row]:
    """A row a size, rank 0's times; at most LIMIT_S seconds.

    Raises:
        ConfigError: fewer GPUs than ranks.
        CommunicatorError: a rank failed; the end of what it said.
    """
    num_gpus = torch.cuda.device_count()
    if not 2 <= num_ranks <= num_gpus:
        raise ConfigError(f"--ranks={num_ranks}: two or more are needed, with a GPU each; torch sees {num_gpus}")
    unique_id, processes = make_unique_id("cuda").hex(), []
    try:
        for rank in range(num_ranks):
            command = [sys.executable, "-m", "runtime.bench.all_reduce", str(rank), str(num_ranks)]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
            _send(processes[-1], unique_id)
        for line in _output(processes).splitlines():
            yield {"scenario": "allreduce", "tp": num_ranks, **json.loads(line)}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def limits_of(rows: Iterable[Row]) -> dict[str, int]:
    """Up to which size which way was fastest, as `kernels.tile_config.AllReduceLimits`; rows: of one number of ranks.

    A limit lies at the end of the sizes from the smallest on at which the way was never slower than those that follow.
    """
    found = sorted(rows, key=lambda row: int(row["bytes"]))
    ways = [
        {way: float(row.get(f"{way}_norm_us", math.inf)) for way in ("one_shot", "two_shot", "nccl")} for row in found
    ]
    one_shot = _last_of_run(found, [t["one_shot"] <= TOLERANCE * min(t["two_shot"], t["nccl"]) for t in ways])
    either = _last_of_run(found, [min(t["one_shot"], t["two_shot"]) <= TOLERANCE * t["nccl"] for t in ways])
    return {"one_shot_bytes": one_shot, "two_shot_bytes": max(one_shot, either)}


def _last_of_run(rows: Sequence[Row], holds: Sequence[bool]) -> int:
    """Bytes of the last row before the first at which it does not hold."""
    first = list(holds).index(False) if False in holds else len(rows)
    return int(rows[first - 1]["bytes"]) if first > 0 else 0


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _output(processes: list[subprocess.Popen[str]]) -> str:
    """What rank 0 printed; a rank that fails is not waited for by the others' time."""
    deadline = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in processes):
        _raise_failure(processes)
        if time.monotonic() > deadline:
            raise CommunicatorError(f"the ranks were not done after {LIMIT_S:g} s")
        time.sleep(0.1)
    _raise_failure(processes)
    return processes[0].communicate()[0]


def _raise_failure(processes: list[subprocess.Popen[str]]) -> None:
    for rank, process in enumerate(processes):
        if process.poll():
            lines = process.communicate()[1].strip().splitlines() or ["without a word"]
            raise CommunicatorError(f"rank {rank} failed: {lines[-1]}")


class _Inputs:
    """Of one size; sums go in place, so x is zero and stays so."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.x, self.residual = (torch.zeros(num_rows, HIDDEN, dtype=torch.bfloat16, device=device) for _ in "xr")
        self.weight = torch.ones(HIDDEN, dtype=torch.bfloat16, device=device)


def _time(group: TpGroup, call: Callable[[], object]) -> float:
    """Microseconds of a call; the ranks begin together."""
    group.barrier()
    return round(microseconds(lambda _: call(), [None], min_calls=50), 2)


def _group_times(group: TpGroup, prefix: str, device: torch.device) -> list[Row]:
    """What the group itself chooses, by size."""
    found = []
    for rows in ROWS:
        one = _Inputs(rows, device)
        norm = partial(group.all_reduce_norm, one.x, one.residual, one.weight, None, 1e-5)
        us = _time(group, partial(group.all_reduce, one.x))
        found.append({f"{prefix}_us": us, f"{prefix}_norm_us": _time(group, norm)})
    return found


def _peer_times(group: Any, device: torch.device) -> list[Row]:
    """Both ways over peer memory, by size."""

    def times(x: Tensor, residual: Tensor, weight: Tensor) -> Row:
        found = {}
        for name, two_shot in (("one_shot", False), ("two_shot", True)):
            alone = partial(ops.all_reduce, x, group.peers.memory, two_shot=two_shot, out=x)
            arguments = (x, residual, weight, None, 1e-5, group.peers.memory)
            norm = partial(ops.all_reduce_norm, *arguments, two_shot=two_shot, out=x)
            found[f"{name}_us"] = _time(group, alone)
            found[f"{name}_norm_us"] = _time(group, norm)
        return found

    inputs = [_Inputs(rows, device) for rows in ROWS]
    return [times(one.x, one.residual, one.weight) for one in inputs]


def main(rank: int, size: int) -> None:
    """One rank's part; rank 0 prints a row a size."""
    device = torch.device("cuda", rank)
    group: Any = init_tp_group(bytes.fromhex(sys.stdin.readline()), rank, size, device, WAIT_S)
    nccl = _group_times(group, "nccl", device)  # it sums at every size before `reserve`
    group.reserve(ROWS[-1], HIDDEN * torch.bfloat16.itemsize)
    peers: list[Row] = _peer_times(group, device) if group.peers is not None else [{} for _ in ROWS]
    group.barrier()
    for rows, *times in zip(ROWS, nccl, peers) if rank == 0 else ():
        print(json.dumps({"bytes": rows * HIDDEN * 2, **times[1], **times[0]}))
    group.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
