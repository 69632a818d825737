"""What `tune_kernels.py` tries: the tile configurations of each kernel, and the shapes that decide between them."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LIBRARY = "library"  # the entry that stands for cuBLAS
KINDS = [f"{op}{mode}" for op in ("token_attention", "context_attention", "linear") for mode in ("", "_deterministic")]


@dataclass(frozen=True)
class Problem:
    """One entry of the table and the shape that decides it."""

    op: str
    key: str
    model: str
    shape: tuple[int, ...]
    deterministic: bool = False

    @property
    def kind(self) -> str:
        return f"{self.op}_deterministic" if self.deterministic else self.op

    @property
    def bucket(self) -> str:
        """Of linear: the rows that its key names."""
        return self.key.removesuffix("_deterministic").rpartition("x")[2]


@dataclass(frozen=True)
class Candidate:
    problem: Problem
    config: tuple[tuple[str, Any], ...]


def _configs(**choices: list[Any]) -> list[tuple[tuple[str, Any], ...]]:
    return [tuple(zip(choices, values)) for values in itertools.product(*choices.values())]


def _gemv_configs() -> list[tuple[tuple[str, Any], ...]]:
    wide = _configs(block_n=[4, 8, 16], block_k=[512, 1024], num_warps=[4, 8])
    return [*wide, *_configs(block_n=[2, 4], block_k=[2048], num_warps=[4, 8])]


def _few_rows_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """For memory-bound products: two or more waves of tiles, or K split until there are."""
    tile_choices = [
        (32, 128, 4, 6),
        (64, 128, 4, 5),
        (64, 64, 4, 8),
        (128, 128, 4, 4),
        (128, 64, 4, 6),
        (32, 256, 4, 4),
    ]
    for (block_n, block_k, warps, stages), splits, swap in itertools.product(tile_choices, (1, 2, 4, 8), (False, True)):
        programs = num_out // block_n * splits
        too_big = stages * block_k * (block_n + bucket) * 2 > 220 << 10
        if too_big or not 100 <= programs <= 1400 * max(1, num_out // 28672) or num_in // splits < 2 * block_k:
            continue
        if swap and block_n < 64:
            continue
        yield from _configs(
            block_m=[bucket], block_n=[block_n], block_k=[block_k], num_warps=[warps], num_stages=[stages],
            splits=[splits], swap=[swap],
        )  # fmt: skip


def _many_rows_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """For 128 and 256 rows: near the ridge, so wide tiles."""
    tile_choices = [
        *[(128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 256, 64, 8, 3), (64, 256, 64, 4, 4), (128, 64, 128, 4, 3)],
        *[(256, 128, 64, 8, 3), (128, 128, 128, 8, 3), (64, 128, 128, 4, 3), (64, 128, 64, 4, 6), (64, 64, 128, 4, 4)],
        *[(128, 256, 64, 8, 4), (256, 128, 64, 8, 4), (64, 256, 64, 8, 4)],
    ]
    for (block_m, block_n, block_k, warps, stages), splits in itertools.product(tile_choices, (1, 2, 3, 4)):
        programs = -(-bucket // block_m) * (num_out // block_n) * splits
        if block_m > bucket or programs < 90 or (splits > 1 and programs > 500) or num_in // splits < 512:
            continue
        yield from _configs(
            block_m=[block_m], block_n=[block_n], block_k=[block_k], num_warps=[warps], num_stages=[stages],
            splits=[splits],
        )  # fmt: skip


def _prompt_configs() -> list[tuple[tuple[str, Any], ...]]:
    """For thousands of rows, bound by the matrix unit."""
    tile_choices = [
        *[(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4)],
        *[(128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 128, 8, 3)],
    ]
    names = ("block_m", "block_n", "block_k", "num_warps", "num_stages")
    return [tuple(zip(names, values)) for values in tile_choices]


def _linear_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    if bucket == 1:
        return iter(_gemv_configs())
    if bucket <= 64:
        return _few_rows_configs(bucket, num_out, num_in)
    if bucket <= 256:
        return _many_rows_configs(bucket, num_out, num_in)
    return iter(_prompt_configs())


def _deterministic_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """The same tiles with the ranges of K that the weight's shape prescribes."""
    splits = importlib.import_module("runtime.kernels.linear_config").deterministic_splits(num_out, num_in)
    seen = set()
    for config in _linear_configs(bucket, num_out, num_in):
        values = {**dict(config), "splits": splits, "fold": bucket > 64 and splits > 1}
        seen.add(tuple(values.items()))
    return iter(sorted(seen, key=str))


# What decides a bucket, where not its largest number of rows alone: cuBLAS is slow at some that are no power of two.
ROWS_OF_BUCKET = {128: (80, 96, 128), 256: (144, 208, 256)}


def linear_candidates(model: str, num_ranks: int = 1) -> Iterator[Candidate]:
    weights = importlib.import_module("runtime.bench.kernel_cases").MODELS[model].share(num_ranks).weights
    for bucket, (_, num_out, num_in, _) in itertools.product((1, 16, 64, 256, 32, 128), weights):
        for num_rows in ROWS_OF_BUCKET.get(bucket, (bucket,)):
            problem = Problem("linear", f"{num_out}x{num_in}x{bucket}", model, (num_rows, num_out, num_in))
            yield from (Candidate(problem, config) for config in _linear_configs(bucket, num_out, num_in))
    for bucket, (_, num_out, num_in, _) in itertools.product((16, 64, 256, 8192, 32, 128), weights):
        if bucket == 8192 and num_out > 65536:  # an LM head never meets a prompt
            continue
        key = f"{num_out}x{num_in}x{bucket}_deterministic"
        problem = Problem("linear", key, model, (bucket, num_out, num_in), deterministic=True)
        yield from (Candidate(problem, config) for config in _deterministic_configs(bucket, num_out, num_in))


def _token_attention_configs(size: str, deterministic: bool) -> Iterator[tuple[tuple[str, Any], ...]]:
    grids = [
        *[(64, 4, 3, 2), (64, 4, 5, 1), (64, 4, 2, 3), (64, 2, 3, 2), (64, 2, 2, 3), (64, 2, 2, 4), (64, 8, 3, 2)],
        *[(32, 4, 4, 3), (32, 2, 4, 3), (32, 2, 3, 4), (32, 2, 3, 5), (32, 1, 3, 4), (32, 2, 2, 6), (128, 4, 3, 1)],
        *[(16, 1, 4, 6), (16, 1, 3, 8)],
    ]
    # of few rows each program has a tile or none: longer shares leave fewer partial answers to add up
    shares = [1, 2, 4, 8] if size == "few" else [1, 2]
    if deterministic:  # its tile of keys is fixed
        grids = [(64, *rest) for rest in ((4, 3, 2), (4, 4, 2), (4, 2, 3), (2, 3, 2), (2, 2, 3), (8, 3, 2), (4, 5, 1))]
        shares = [1]
    for (key_tile, warps, stages, programs), min_share in itertools.product(grids, shares):
        values = dict(key_tile=key_tile, num_warps=warps, num_stages=stages, programs_per_sm=programs)
        yield tuple({**values, "min_share": min_share}.items())


RAGGED = 1  # third number of a shape: the second is the mean of different lengths


def lengths_of(batch: int, length: int, ragged: int = 0) -> list[int]:
    chosen = random.Random(0)
    return [chosen.randint(length // 8, 2 * length - length // 8) if ragged else length for _ in range(batch)]


def attention_candidates(model: str) -> Iterator[Candidate]:
    cases = importlib.import_module("runtime.bench.kernel_cases")
    heads = cases.MODELS[model].heads
    row_bytes = str(heads.head_dim * 2)
    row_and_group = f"{row_bytes}x{heads.num_heads // heads.num_kv_heads}"
    token_shapes: dict[str, list[tuple[int, ...]]] = {
        "few": [(1, 1000), (8, 1000), (8, 7000)],
        "many": [(64, 1000), (256, 1000), (256, 600, RAGGED)],
    }
    for deterministic in (False, True):
        mode = "_deterministic" if deterministic else ""
        for size, shapes in token_shapes.items():
            for shape, config in itertools.product(shapes, _token_attention_configs(size, deterministic)):
                key = f"{row_and_group}_{size}{mode}"
                yield Candidate(Problem("token_attention", key, model, shape, deterministic), config)
        key = row_bytes + mode
        problem = Problem("context_attention", key, model, (2, 4096), deterministic)
        tiles = [(128, 64, 8), (64, 64, 4)] + ([] if deterministic else [(128, 128, 8), (64, 128, 4), (64, 32, 4)])
        for (query_tile, key_tile, warps), stages in itertools.product(tiles, (2, 3, 4)):
            values = dict(query_tile=query_tile, key_tile=key_tile, num_warps=warps, num_stages=stages)
            yield Candidate(problem, tuple(values.items()))
