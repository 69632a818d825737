"""Which kernel and tile multiplies by a weight: measured entries per device and weight shape, defaults elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from .tile_config import lookup


@dataclass(frozen=True)
class GemvConfig:
    """The streaming kernel for one row."""

    block_n: int
    block_k: int
    num_warps: int


@dataclass(frozen=True)
class GemmConfig:
    """The matrix kernel: `splits` ranges of K, each its own program unless `fold`."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    splits: int = 1
    swap: bool = False
    tma: bool = True
    fold: bool = False


def row_bucket(num_rows: int) -> int:
    """Rows as the table counts them: 1, 16, 32, 64, ..."""
    return 1 if num_rows == 1 else max(16, int(triton.next_power_of_2(num_rows)))


def linear_config(x: torch.Tensor, weight: torch.Tensor) -> GemvConfig | GemmConfig | None:
    """The fastest way known; None is cuBLAS, also for float32 and for shapes that were not measured."""
    num_rows = x.shape[0]
    if x.dtype.itemsize != 2 or num_rows > 256 or num_rows == 0:
        return None
    bucket = row_bucket(num_rows)
    entry = lookup(x.device, "linear", f"{weight.shape[0]}x{weight.shape[1]}x{bucket}")
    if bucket == 1:
        return GemvConfig(**entry) if entry else GemvConfig(block_n=8, block_k=1024, num_warps=8)
    return GemmConfig(**entry) if entry else None


def deterministic_splits(num_out: int, num_in: int) -> int:
    """Ranges of K, a function of the weight's shape alone: enough programs for few rows of a narrow weight."""
    wanted = int(triton.next_power_of_2(triton.cdiv(4096, num_out)))
    return max(1, min(4, wanted, num_in // 512))


def deterministic_gemm_config(x: torch.Tensor, weight: torch.Tensor) -> GemmConfig:
    """Tiles may follow the number of rows; the ranges of K may not."""
    num_rows, (num_out, num_in) = x.shape[0], weight.shape
    splits = deterministic_splits(num_out, num_in)
    if x.dtype.itemsize == 4:
        return GemmConfig(
            block_m=16, block_n=32, block_k=64, num_warps=4, num_stages=2, splits=splits, fold=num_rows > 64
        )
    bucket = max(16, row_bucket(num_rows)) if num_rows <= 256 else 8192
    entry = lookup(x.device, "linear", f"{num_out}x{num_in}x{bucket}_deterministic")
    if entry:
        assert entry["splits"] == splits, "the table's ranges of K are those of the weight's shape"
        return GemmConfig(**entry)
    if num_rows <= 64:
        return GemmConfig(block_m=bucket, block_n=64, block_k=128, num_warps=4, num_stages=4, splits=splits)
    return GemmConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=4, splits=splits, fold=True)
