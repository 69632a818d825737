"""The kernel table: each hot kernel at real shapes against what the device can do.

python -m runtime.bench.kernels [--out rows.jsonl] [--only token_attention,linear,rowwise] [--model NAME]

One JSON object a row: `op`, `model`, `case`, `deterministic`, `us`, then `tb_s` and `pct_of_copy` (bytes that must
move, against a device copy measured in the same run) or `tflop_s`, and `library_us` (cuBLAS or torch's attention).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import ConfigError, DeviceNotFoundError, did_you_mean
from ..kernels.context_attention import context_attention
from ..kernels.linear import linear
from ..kernels.token_attention import token_attention
from .gpu_timing import copy_bandwidth, microseconds, num_input_sets
from .kernel_cases import (
    BLOCK_SIZE,
    MODELS,
    AttentionInputs,
    Heads,
    KvPool,
    ModelShapes,
    causal_flops,
    kv_bytes,
    weight_sets,
)
from .kernels_rowwise import rowwise_rows
from .rows import Row, environment

OPS = ("token_attention", "context_attention", "linear", "rowwise")
DTYPE = torch.bfloat16
POOL_BYTES = 8 << 30
ROWS_OF_LINEAR = (1, 2, 8, 16, 32, 64, 128, 256)


def _skewed_lengths(batch: int) -> list[int]:
    """Most rows short, a few long: the shape of real traffic."""
    chosen = random.Random(0)
    return [min(16384, int(chosen.lognormvariate(6.6, 1.2)) + 1) for _ in range(batch)]


TOKEN_CASES: dict[str, list[int]] = {
    "b1 x 128": [128],
    "b1 x 1000": [1000],
    "b8 x 1000": [1000] * 8,
    "b64 x 1000": [1000] * 64,
    "b256 x 1000": [1000] * 256,
    "b8 x 7000": [7000] * 8,
    "b1 x 65536": [65536],
    "b16 x 8192": [8192] * 16,
    "b64 skewed": _skewed_lengths(64),
}

# rows of the second case share their first tokens, as after a common prompt
NUM_SHARED = 2048
SHARED_CASES = {"b256 x 2304": 0, f"b256 x 2304, {NUM_SHARED} of them shared": NUM_SHARED}

CONTEXT_CASES: dict[str, tuple[list[int], list[int]]] = {
    "2 x 4096": ([4096] * 2, [4096] * 2),
    "1 x 4096": ([4096], [4096]),
    "16 x 512": ([512] * 16, [512] * 16),
    "1 x 2048 after 6144": ([2048], [8192]),
    "1 x 2048 and 192 decode rows of 1000": ([1] * 192 + [2048], [1000] * 192 + [2048]),
    "1 x 32768": ([32768], [32768]),
}


def _memory_row(num_bytes: int, us: float) -> Row:
    rate = num_bytes / (us * 1e-6)
    return {"us": round(us, 2), "tb_s": round(rate / 1e12, 3), "pct_of_copy": round(100 * rate / copy_bandwidth(), 1)}


def token_attention_rows(heads: Heads, device: torch.device) -> Iterator[Row]:
    pool = KvPool(heads, POOL_BYTES, BLOCK_SIZE, DTYPE, device)
    for (case, lens), deterministic in itertools.product(TOKEN_CASES.items(), (False, True)):
        num_bytes = kv_bytes(heads, lens, DTYPE)
        us = _token_attention_us(pool, lens, deterministic=deterministic)
        yield {"case": case, "deterministic": deterministic, **_memory_row(num_bytes, us)}


def shared_prefix_rows(heads: Heads, device: torch.device) -> Iterator[Row]:
    """Token attention over a common prefix; `repeated_tile_share` is what simulations ask for."""
    pool, lens = KvPool(heads, POOL_BYTES, BLOCK_SIZE, DTYPE, device), [2304] * 256
    us = {shared: _token_attention_us(pool, lens, num_shared=shared) for shared in SHARED_CASES.values()}
    for case, shared in SHARED_CASES.items():
        row = {"case": case, "deterministic": False, "us": round(us[shared], 2)}
        repeated = shared * (len(lens) - 1) / sum(lens)  # share of the tiles
        yield row | ({"repeated_tile_share": round(1 - (1 - us[shared] / us[0]) / repeated, 3)} if shared else {})


def _token_attention_us(pool: KvPool, lens: list[int], *, num_shared: int = 0, deterministic: bool = False) -> float:
    count = num_input_sets(kv_bytes(pool.heads, lens, DTYPE))
    sets = [pool.inputs([1] * len(lens), lens, num_shared) for _ in range(count)]
    options: dict[str, Any] = dict(
        sm_scale=pool.heads.head_dim**-0.5, deterministic=deterministic, out=torch.empty_like(sets[0].q)
    )

    def call(s: AttentionInputs) -> None:
        b_loc, b_row, _, b_seq_len = s.tables
        token_attention(s.q, s.k_cache, s.v_cache, b_loc, b_row, b_seq_len, s.max_len, **options)

    return microseconds(call, sets)


def _library_attention_us(heads: Heads, batch: int, length: int, device: torch.device) -> float:
    shape = (batch, heads.num_heads, length, heads.head_dim)
    q, k, v = (torch.empty(shape, dtype=DTYPE, device=device).normal_() for _ in "qkv")
    return microseconds(lambda one: F.scaled_dot_product_attention(one, k, v, is_causal=True), [q], min_calls=4)


def context_attention_rows(heads: Heads, device: torch.device) -> Iterator[Row]:
    pool = KvPool(heads, POOL_BYTES // 2, BLOCK_SIZE, DTYPE, device)
    for (case, (num_new, lens)), deterministic in itertools.product(CONTEXT_CASES.items(), (False, True)):
        sets = [pool.inputs(num_new, lens) for _ in range(4)]
        options: dict[str, Any] = dict(
            sm_scale=heads.head_dim**-0.5, deterministic=deterministic, out=torch.empty_like(sets[0].q)
        )

        def call(s: AttentionInputs, options: dict[str, Any] = options) -> None:
            context_attention(s.q, s.k_cache, s.v_cache, *s.tables, s.max_new_tokens, **options)

        us = microseconds(call, sets, min_calls=4)
        row: Row = {"case": case, "deterministic": deterministic, "us": round(us, 1)}
        row["tflop_s"] = round(causal_flops(heads, num_new, lens) / us / 1e6, 1)
        if num_new == lens and not deterministic:
            row["library_us"] = round(_library_attention_us(heads, len(lens), lens[0], device), 1)
        yield row


def _linear_times(x: torch.Tensor, weights: list[torch.Tensor]) -> dict[str, float]:
    """Microseconds of one product: cuBLAS, ours, ours in a fixed order of addition."""
    out = torch.empty(x.shape[0], weights[0].shape[0], dtype=x.dtype, device=x.device)
    return {
        "library": microseconds(lambda w: torch.mm(x, w.t(), out=out), weights),
        "ours": microseconds(lambda w: linear(x, w, out=out), weights),
        "deterministic": microseconds(lambda w: linear(x, w, deterministic=True, out=out), weights),
    }


def linear_rows(shapes: ModelShapes, device: torch.device) -> Iterator[Row]:
    step: dict[tuple[int, str], float] = {}
    for name, num_out, num_in, count in shapes.weights:
        num_bytes = num_out * num_in * DTYPE.itemsize
        weights = weight_sets(num_out, num_in, num_input_sets(num_bytes), DTYPE, device)
        for num_rows in ROWS_OF_LINEAR:
            us = _linear_times(torch.empty(num_rows, num_in, dtype=DTYPE, device=device).normal_(), weights)
            for way, value in us.items():
                step[num_rows, way] = step.get((num_rows, way), 0.0) + value * count
            for way in ("ours", "deterministic"):
                row = {"case": f"{name} {num_in}->{num_out} M={num_rows}", "deterministic": way != "ours"}
                row |= _memory_row(num_bytes, us[way])
                row["tflop_s"] = round(2 * num_rows * num_out * num_in / us[way] / 1e6, 1)
                yield {**row, "library_us": round(us["library"], 2)}
        del weights
    for num_rows, way in itertools.product(ROWS_OF_LINEAR, ("ours", "deterministic")):
        row = {"case": f"all of one step M={num_rows}", "deterministic": way != "ours"}
        yield {**row, "us": round(step[num_rows, way], 1), "library_us": round(step[num_rows, "library"], 1)}


def _rows(model: str, ops: Sequence[str], device: torch.device) -> Iterator[Row]:
    shapes = MODELS[model]
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "token_attention": lambda: itertools.chain(
            token_attention_rows(shapes.heads, device), shared_prefix_rows(shapes.heads, device)
        ),
        "context_attention": lambda: context_attention_rows(shapes.heads, device),
        "linear": lambda: linear_rows(shapes, device),
        "rowwise": lambda: rowwise_rows(shapes),
    }
    for op in ops:
        for row in makers[op]():
            yield {"op": op, "model": model, **row}


def _print_row(row: Row) -> None:
    name = f"{row['op']} {row['case']}{' det' if row['deterministic'] else ''}"
    figures = [f"{row['us']:9.2f} us"]
    figures += [f"{row[key]:8.2f} {unit}" for key, unit in (("tb_s", "TB/s"), ("tflop_s", "TFLOP/s")) if key in row]
    if "pct_of_copy" in row:
        figures.append(f"{row['pct_of_copy']:5.1f} % of copy")
    if "library_us" in row:
        figures.append(f"library {row['library_us']:9.2f} us")
    print(f"{name:62}", *figures, flush=True)


def measure(model: str, ops: Sequence[str]) -> Iterator[Row]:
    """The rows of some of `OPS` at the shapes of one of `MODELS`.

    Raises:
        ConfigError: another name.
        DeviceNotFoundError: torch sees no CUDA device.
    """
    for flag, names, known in (("--model", [model], MODELS), ("--only", ops, OPS)):
        for name in names:
            if name not in known:
                raise ConfigError(f"{flag}={name}: must be of {', '.join(known)}{did_you_mean(name, known)}")
    if not torch.cuda.is_available():
        raise DeviceNotFoundError("kernels are timed on a CUDA device, and torch sees none")
    torch.manual_seed(0)
    common = environment("cuda")
    for row in _rows(model, ops, torch.device("cuda")):
        yield {**row, **common}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="runtime.bench.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", "--json", type=Path, help="file that gets one JSON object a line")
    parser.add_argument("--only", default=",".join(OPS), help="ops, with commas between")
    parser.add_argument("--model", default="llama-3.1-8b", help=", ".join(MODELS))
    args = parser.parse_args(argv)
    rows: list[Row] = []
    try:
        for row in measure(args.model, args.only.split(",")):
            rows.append(row)
            _print_row(row)
            if args.out:
                args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    except ConfigError as error:
        print(f"runtime.bench.kernels: {error}", file=sys.stderr)
        return 2
    print(f"{rows[0]['device']}, copy {copy_bandwidth() / 1e12:.2f} TB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
