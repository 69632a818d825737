"""Sizes of attention that the host needs: tiles, and the memory in which partial results wait. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Head dimensions that the kernels are tested with on devices.
HEAD_DIMS = (16, 32, 64, 80, 96, 112, 128, 256)

# Tokens of context that one partial result covers in deterministic mode, counted from position 0.
DETERMINISTIC_SPLIT = 256


def padded_dim(head_dim: int) -> int:
    """Head dimension as a tile holds it: a power of two that the matrix unit takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def default_key_tile(head_dim: int, dtype: torch.dtype) -> int:
    """Keys of a tile, so that one tile of K is 16 KiB."""
    return max(16, min(64, 16384 // (padded_dim(head_dim) * dtype.itemsize)))


def batch_tile(batch: int) -> int:
    """Rows that a kernel looks through for its own; few different ones, since each is a compilation."""
    return max(128, 1 << (batch - 1).bit_length())


@dataclass(frozen=True)
class PartialsSize:
    """Elements of the buffers that programs of token attention share."""

    acc: int  # float32, sums of values
    stat: int  # float32, maximum and sum of each row
    counter: int  # int32, arrivals at each pair of row and KV head

    @property
    def num_bytes(self) -> int:
        return 4 * (self.acc + self.stat + self.counter)


def partials_size(
    batch: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    max_len: int,
    num_programs: int,
    deterministic: bool,
) -> PartialsSize:
    """Of a launch with `num_programs`, for contexts of at most `max_len` tokens."""
    group = num_heads // num_kv_heads
    if deterministic:  # one for each split of each pair
        num_partials = batch * num_kv_heads * -(-max_len // DETERMINISTIC_SPLIT)
    else:  # a program shares at most its first and its last pair
        num_partials = 2 * num_programs
    return PartialsSize(
        acc=num_partials * group * padded_dim(head_dim), stat=num_partials * group * 2, counter=batch * num_kv_heads
    )
