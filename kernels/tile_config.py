"""Tile shapes of the hot kernels, by device and shape class, and up to which size sums over ranks go which way.

Committed figures, measured by `tools/tune_kernels.py` and `tools/tune_all_reduce.py`; nothing is tuned while serving.
An entry that a device's table lacks is that of another device of its compute capability; a shape without a measured
entry gets the defaults below.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import launch
from .attention_shapes import default_key_tile, padded_dim
from .device import device_name

_FEW_ROWS = 16  # of a decode batch that may not fill the device
_UNMEASURED_PROGRAMS_PER_SM = 2
_CONFIG_DIR = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TokenAttentionConfig:
    key_tile: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    min_share: int  # tiles of keys that a program takes at least


@dataclass(frozen=True)
class ContextAttentionConfig:
    query_tile: int  # rows of the matrix tile: query tokens x heads of one KV group
    key_tile: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AllReduceLimits:
    """Bytes of x up to which its sum over the ranks goes one-shot, and up to which two-shot; larger ones are NCCL's."""

    one_shot_bytes: int
    two_shot_bytes: int


# Where nothing was measured.
_ALL_REDUCE_LIMITS = {
    2: AllReduceLimits(4 << 20, 4 << 20),
    4: AllReduceLimits(256 << 10, 4 << 20),
    8: AllReduceLimits(128 << 10, 2 << 20),
}


@functools.cache
def _tables(name: str, capability: tuple[int, int]) -> list[dict[str, Any]]:
    """The device's own, then those of other devices of its generation."""
    own = _CONFIG_DIR / f"{name.replace(' ', '_')}.json"
    others = sorted(set(_CONFIG_DIR.glob("*.json")) - {own})
    tables = [json.loads(path.read_text()) for path in ([own, *others] if own.exists() else others)]
    return [table for table in tables if table["compute_capability"] == list(capability)]


def lookup(device: torch.device, op: str, *keys: str) -> dict[str, Any] | None:
    """The measured entry of `op` for this kind of device and shape class, or None.

    Args:
        keys: of the shape class, the narrowest first; any of them of the device's own comes before another device's.
    """
    for table in _tables(device_name(device), launch.capability(device)):
        for key in keys:
            if key in (entries := table.get(op, {})):
                entry: dict[str, Any] | None = entries[key]
                return entry
    return None


def all_reduce_limits(device: torch.device, num_ranks: int) -> AllReduceLimits:
    """Of groups of that many ranks, or of the next larger number that is known; none: NCCL makes all sums."""
    for size, default in sorted(_ALL_REDUCE_LIMITS.items()):
        if num_ranks <= size:
            found = lookup(device, "all_reduce", str(size))
            return AllReduceLimits(**found) if found else default
    return AllReduceLimits(0, 0)


def token_attention_config(
    device: torch.device, head_dim: int, dtype: torch.dtype, group: int, batch: int, deterministic: bool
) -> TokenAttentionConfig:
    """Shape class: bytes of one padded row of K, and whether latency or bandwidth counts; where it was measured, with
    the query heads of a KV head too."""
    row_bytes = padded_dim(head_dim) * dtype.itemsize
    rest = f"{'few' if batch <= _FEW_ROWS else 'many'}{'_deterministic' if deterministic else ''}"
    if found := lookup(device, "token_attention", f"{row_bytes}x{group}_{rest}", f"{row_bytes}_{rest}"):
        return TokenAttentionConfig(**found)
    return TokenAttentionConfig(
        key_tile=default_key_tile(head_dim, dtype),
        num_warps=4,
        num_stages=3,
        programs_per_sm=_UNMEASURED_PROGRAMS_PER_SM,
        min_share=1,
    )


@functools.cache
def most_programs_per_sm() -> int:
    """Of token attention, the most that any device's table has: what its workspace is planned for."""
    tables = [json.loads(path.read_text()) for path in _CONFIG_DIR.glob("*.json")]
    found: list[int] = [
        entry["programs_per_sm"] for table in tables for entry in table.get("token_attention", {}).values()
    ]
    return max([_UNMEASURED_PROGRAMS_PER_SM, *found])


def context_attention_config(
    device: torch.device, head_dim: int, dtype: torch.dtype, deterministic: bool
) -> ContextAttentionConfig:
    """Shape class: bytes of one padded row of K. Deterministic mode keeps two accumulators and its own key tile."""
    row_bytes = padded_dim(head_dim) * dtype.itemsize
    found = lookup(device, "context_attention", f"{row_bytes}{'_deterministic' if deterministic else ''}")
    if found:
        return ContextAttentionConfig(**found)
    key_tile = default_key_tile(head_dim, dtype)
    if dtype.itemsize == 4:
        return ContextAttentionConfig(query_tile=32, key_tile=key_tile, num_warps=4, num_stages=1)
    if launch.capability(device) < (9, 0):
        query_tile, num_warps = (32, 8) if deterministic else (64, 8)
    else:
        query_tile, num_warps = 64 if deterministic else 128, 8
    return ContextAttentionConfig(query_tile=query_tile, key_tile=key_tile, num_warps=num_warps, num_stages=2)
