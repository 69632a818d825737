"""Inputs of the kernel table: real shapes, random data, no two sets alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK_SIZE = 64


@dataclass(frozen=True)
class Heads:
    """Attention shape of a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class ModelShapes:
    """Weights of one step as (name, out, in, how many), the LM head last; and the attention."""

    heads: Heads
    weights: tuple[tuple[str, int, int, int], ...]

    def share(self, num_ranks: int) -> ModelShapes:
        """One rank's: `o` and `down` split by their input, the rest by their output."""
        heads = Heads(
            self.heads.num_heads // num_ranks, max(self.heads.num_kv_heads // num_ranks, 1), self.heads.head_dim
        )
        weights = tuple(
            (name, num_out, num_in // num_ranks, count)
            if name in ("o", "down")
            else (name, -(-num_out // num_ranks), num_in, count)
            for name, num_out, num_in, count in self.weights
        )
        return ModelShapes(heads, weights)


MODELS = {
    "llama-3.1-8b": ModelShapes(
        Heads(32, 8, 128),
        (
            ("qkv", 6144, 4096, 32),
            ("o", 4096, 4096, 32),
            ("gate_up", 28672, 4096, 32),
            ("down", 4096, 14336, 32),
            ("lm_head", 128256, 4096, 1),
        ),
    ),
    "llama-3.1-70b": ModelShapes(
        Heads(64, 8, 128),
        (
            ("qkv", 10240, 8192, 80),
            ("o", 8192, 8192, 80),
            ("gate_up", 57344, 8192, 80),
            ("down", 8192, 28672, 80),
            ("lm_head", 128256, 8192, 1),
        ),
    ),
    "qwen3-0.6b": ModelShapes(
        Heads(16, 8, 128),
        (
            ("qkv", 4096, 1024, 28),
            ("o", 1024, 2048, 28),
            ("gate_up", 6144, 1024, 28),
            ("down", 1024, 3072, 28),
            ("lm_head", 151936, 1024, 1),
        ),
    ),
    "bloom-7b1": ModelShapes(
        Heads(32, 32, 128),
        (
            ("qkv", 12288, 4096, 30),
            ("o", 4096, 4096, 30),
            ("up", 16384, 4096, 30),
            ("down", 4096, 16384, 30),
            ("lm_head", 250880, 4096, 1),
        ),
    ),
}


@dataclass
class AttentionInputs:
    """One set of arguments of the attention ops; `tables` is (b_loc, b_row, b_start_loc, b_seq_len)."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    max_new_tokens: int
    max_len: int


class KvPool:
    """A cache of random values from which sets take random blocks, each block once until all are used."""

    def __init__(self, heads: Heads, num_bytes: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.block_size, self.dtype, self.device = heads, block_size, dtype, device
        block_bytes = heads.num_kv_heads * block_size * heads.head_dim * dtype.itemsize
        self.num_blocks = num_bytes // (2 * block_bytes)
        shape = (self.num_blocks + 1, heads.num_kv_heads, block_size, heads.head_dim)
        self.k_cache, self.v_cache = (torch.empty(shape, dtype=dtype, device=device).normal_() for _ in "kv")
        self._order = torch.randperm(self.num_blocks, device=device, dtype=torch.int32) + 1
        self._next = 0

    def _take(self, count: int) -> torch.Tensor:
        if self._next + count > self.num_blocks:
            self._next = 0
        self._next += count
        return self._order[self._next - count : self._next]

    def inputs(self, num_new: Sequence[int], seq_lens: Sequence[int], num_shared: int = 0) -> AttentionInputs:
        """Row i has num_new[i] new tokens at the end of seq_lens[i] tokens of context.

        Args:
            num_shared: first tokens of the context that all rows have in common, whole blocks.
        """
        counts = [-(-length // self.block_size) for length in seq_lens]
        b_loc = torch.zeros(len(seq_lens), max(counts), dtype=torch.int32, device=self.device)
        shared = self._take(num_shared // self.block_size)
        for row, count in enumerate(counts):
            b_loc[row, :count] = torch.cat([shared, self._take(count - len(shared))])
        starts = [0, *itertools.accumulate(num_new)]
        b_row, b_start_loc, b_seq_len = (
            torch.tensor(values, dtype=torch.int32, device=self.device)
            for values in (list(range(len(seq_lens))), starts, list(seq_lens))
        )
        shape = (starts[-1], self.heads.num_heads, self.heads.head_dim)
        q = torch.empty(shape, dtype=self.dtype, device=self.device).normal_()
        tables = (b_loc, b_row, b_start_loc, b_seq_len)
        return AttentionInputs(q, self.k_cache, self.v_cache, tables, max(num_new), max(seq_lens))


def kv_bytes(heads: Heads, seq_lens: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of K and V that one token attention reads."""
    return 2 * sum(seq_lens) * heads.num_kv_heads * heads.head_dim * dtype.itemsize


def causal_flops(heads: Heads, num_new: Sequence[int], seq_lens: Sequence[int]) -> int:
    """Operations of both products over the visible pairs of query and key."""
    pairs = sum(new * (length - new) + new * (new + 1) // 2 for new, length in zip(num_new, seq_lens))
    return 4 * pairs * heads.num_heads * heads.head_dim


def weight_sets(num_out: int, num_in: int, count: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Random weights scaled so that results are of order one."""
    return [torch.empty(num_out, num_in, dtype=dtype, device=device).normal_(0, num_in**-0.5) for _ in range(count)]
