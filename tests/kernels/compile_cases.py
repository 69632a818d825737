"""The launches that tools/check_kernels.py compiles: every kernel in the variants that a real model uses.

A case calls the public op with empty host tensors of real shapes; nothing is computed, so their memory is not touched.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from runtime.kernels.all_reduce import all_reduce
from runtime.kernels.all_reduce_norm import all_reduce_norm
from runtime.kernels.context_attention import context_attention
from runtime.kernels.copy_blocks import copy_blocks
from runtime.kernels.embedding import embedding
from runtime.kernels.gelu_tanh import gelu_tanh
from runtime.kernels.kv_store import kv_store
from runtime.kernels.layer_norm import layer_norm
from runtime.kernels.linear import launch_gemm, launch_gemv, linear
from runtime.kernels.linear_config import GemmConfig, GemvConfig
from runtime.kernels.peer_memory import PeerMemory
from runtime.kernels.prepare_step import prepare_step
from runtime.kernels.rms_norm import rms_norm
from runtime.kernels.rotary_kv_store import rotary_kv_store
from runtime.kernels.sample import sample
from runtime.kernels.silu_and_mul import silu_and_mul
from runtime.kernels.step_state import RowState, StepInputs, StepOutputs
from runtime.kernels.sum_norm import sum_norm
from runtime.kernels.token_attention import token_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
I32, I64 = torch.int32, torch.int64


@dataclass(frozen=True)
class Case:
    """`may_spill`: the kernel is not on the path of every step, and spilled registers are accepted."""

    name: str
    launch: Callable[[], object]
    may_spill: bool = False


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype)


def _norm(hidden: int, dtype: torch.dtype, op: Callable[..., object], num_vectors: int) -> None:
    x, residual = empty(8, hidden, dtype=dtype), empty(8, hidden, dtype=dtype)
    op(x, residual, *(empty(hidden, dtype=dtype) for _ in range(num_vectors)), 1e-5)


def _all_reduce(size: int, hidden: int, *, two_shot: bool, num_vectors: int, dtype: torch.dtype = BF16) -> None:
    x, residual = empty(8, hidden, dtype=dtype), empty(8, hidden, dtype=dtype)
    peers = PeerMemory(1, size, hidden * dtype.itemsize, empty(size + 1, dtype=I64), empty(8, dtype=I32))
    if num_vectors == 0:
        all_reduce(x, peers, two_shot=two_shot)
    else:
        weight, bias = empty(hidden, dtype=dtype), empty(hidden, dtype=dtype) if num_vectors > 1 else None
        all_reduce_norm(x, residual, weight, bias, 1e-5, peers, two_shot=two_shot)


def _sum_norm(size: int, hidden: int, dtype: torch.dtype, *, with_bias: bool) -> None:
    parts, residual, weight = (empty(*shape, dtype=dtype) for shape in ((size, 8, hidden), (8, hidden), (hidden,)))
    sum_norm(parts[0], parts, 0, residual, weight, weight.clone() if with_bias else None, 1e-5)


def _rotary(num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, with_norm: bool) -> None:
    qkv = empty(8, num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    caches = [empty(16, num_kv_heads, 16, head_dim) for _ in "kv"]
    tables = [empty(4096, rotary_dim // 2, dtype=FP32) for _ in "cs"]
    norm = empty(head_dim) if with_norm else None
    at = empty(8, dtype=I32), empty(8, dtype=I64)
    rotary_kv_store(q, k, v, *tables, *at, *caches, q_norm=norm, k_norm=norm, eps=1e-6)


def _step(vocab_size: int = 128256) -> tuple[RowState, StepInputs, StepOutputs]:
    rows = RowState.allocate(max_num_seqs=8, max_model_len=64, block_size=16, vocab_size=vocab_size, device="cpu")
    inputs = StepInputs.allocate(max_num_seqs=8, max_num_batched_tokens=64, device="cpu")
    return rows, inputs, StepOutputs.allocate(max_num_seqs=8, device="cpu")


def _masks(num_rows: int, vocab_size: int = 128256) -> torch.Tensor:
    return empty(num_rows, vocab_size // 32, dtype=I32)


def _attention(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    context: bool,
    block_size: int = 16,
    dtype: torch.dtype = BF16,
    **options: Any,
) -> None:
    q = empty(512, heads, head_dim, dtype=dtype)
    caches = [empty(65, kv_heads, block_size, head_dim, dtype=dtype) for _ in "kv"]
    b_loc, b_row, b_seq_len = empty(9, 256, dtype=I32), empty(8, dtype=I32), empty(8, dtype=I32)
    if context:
        context_attention(q, *caches, b_loc, b_row, empty(9, dtype=I32), b_seq_len, 256, sm_scale=0.1, **options)
    else:
        token_attention(q[:8], *caches, b_loc, b_row, b_seq_len, 4096, sm_scale=0.1, **options)


def _attention_cases() -> list[Case]:
    variants: list[tuple[str, tuple[int, int, int], dict[str, Any]]] = [
        ("32/8 heads of 128", (32, 8, 128), {}),
        ("32/8 heads of 128, blocks of 64", (32, 8, 128), {"block_size": 64}),
        ("32/8 heads of 128, deterministic", (32, 8, 128), {"deterministic": True}),
        ("16/8 heads of 128", (16, 8, 128), {}),
        ("32/32 heads of 128, alibi", (32, 32, 128), {"alibi_slopes": empty(32, dtype=FP32)}),
        ("14/2 heads of 64", (14, 2, 64), {}),
        ("14/2 heads of 64, blocks of 64", (14, 2, 64), {"block_size": 64}),
        ("32/32 heads of 80", (32, 32, 80), {}),
        ("16/8 heads of 256, window, soft cap", (16, 8, 256), {"sliding_window": 4096, "soft_cap": 50.0}),
        ("32/8 heads of 128, fp32", (32, 8, 128), {"dtype": FP32}),
    ]
    return [
        Case(
            f"{'context' if context else 'token'}_attention {name}",
            partial(_attention, *shape, context=context, **options),
            # a head of 80 is padded to 128: a few bytes on sm_80
            may_spill=options.get("dtype") == FP32 or shape[2] > 128 or shape[2] == 80,
        )
        for context in (False, True)
        for name, shape, options in variants
    ]


def _linear(num_rows: int, config: GemmConfig | GemvConfig, num_out: int = 4096, num_in: int = 4096) -> None:
    x, weight, out = empty(num_rows, num_in), empty(num_out, num_in), empty(num_rows, num_out)
    if isinstance(config, GemvConfig):
        launch_gemv(x, weight, None, out, config)
    else:
        launch_gemm(x, weight, None, out, config)


def _deterministic_linear(num_rows: int, dtype: torch.dtype) -> None:
    linear(empty(num_rows, 4096, dtype=dtype), empty(4096, 4096, dtype=dtype), deterministic=True)


def _linear_cases() -> list[Case]:
    few_rows = GemmConfig(16, 64, 128, num_warps=4, num_stages=4, splits=2)
    return [
        Case("linear one row", partial(_linear, 1, GemvConfig(8, 1024, 8))),
        Case("linear 16 rows", partial(_linear, 16, few_rows)),
        Case("linear 16 rows, transposed", partial(_linear, 16, replace(few_rows, swap=True))),
        Case("linear 16 rows, no descriptors", partial(_linear, 16, replace(few_rows, tma=False))),
        *(
            Case(f"linear {num_rows} rows, deterministic, {dtype}", partial(_deterministic_linear, num_rows, dtype))
            for dtype in (BF16, FP32)
            for num_rows in (1, 64, 256)
        ),
    ]


CASES = [
    Case("rms_norm 4096 bf16", lambda: _norm(4096, BF16, rms_norm, 1)),
    Case("rms_norm 8192 fp16", lambda: _norm(8192, FP16, rms_norm, 1)),
    Case("rms_norm 1024 fp32", lambda: _norm(1024, FP32, rms_norm, 1)),
    Case("layer_norm 4096 bf16", lambda: _norm(4096, BF16, layer_norm, 2)),
    Case("all_reduce 2 ranks, 4096 bf16", lambda: _all_reduce(2, 4096, two_shot=False, num_vectors=0)),
    Case(  # parts of eight ranks in flight
        "all_reduce 8 ranks, two-shot, 8192 bf16",
        lambda: _all_reduce(8, 8192, two_shot=True, num_vectors=0),
        may_spill=True,
    ),
    Case("all_reduce_norm 2 ranks, 4096 bf16", lambda: _all_reduce(2, 4096, two_shot=False, num_vectors=1)),
    Case("all_reduce_norm 4 ranks, two-shot, 8192 bf16", lambda: _all_reduce(4, 8192, two_shot=True, num_vectors=1)),
    Case(
        "all_reduce_norm 4 ranks, layer, 1024 fp32",
        lambda: _all_reduce(4, 1024, two_shot=False, num_vectors=2, dtype=FP32),
    ),
    Case("sum_norm 2 ranks, 4096 bf16", lambda: _sum_norm(2, 4096, BF16, with_bias=False)),
    Case("sum_norm 4 ranks, 8192 fp16", lambda: _sum_norm(4, 8192, FP16, with_bias=False)),
    Case("sum_norm 4 ranks, layer, 1024 fp32", lambda: _sum_norm(4, 1024, FP32, with_bias=True)),
    Case("silu_and_mul bf16", lambda: silu_and_mul(empty(8, 2 * 14336))),
    Case("gelu_tanh bf16", lambda: gelu_tanh(empty(8, 16384))),
    Case("embedding bf16", lambda: embedding(empty(8, dtype=I32), empty(1024, 4096))),
    Case("rotary_kv_store 32/8 heads of 128", lambda: _rotary(32, 8, 128, 128, False)),
    Case("rotary_kv_store 16/8 heads of 128, qk-norm", lambda: _rotary(16, 8, 128, 128, True)),
    Case("rotary_kv_store 32/32 heads of 80, partial", lambda: _rotary(32, 32, 80, 32, True)),
    Case(
        "kv_store 32 heads of 128",
        lambda: kv_store(
            empty(8, 32, 128), empty(8, 32, 128), empty(8, dtype=I64), empty(9, 32, 16, 128), empty(9, 32, 16, 128)
        ),
    ),
    Case("prepare_step", lambda: prepare_step(empty(4096, dtype=I32), *_step()[:2])),
    Case("sample, greedy, bf16", lambda: sample(empty(8, 128256), *_step(), greedy_only=True)),
    Case("sample, greedy, fp32", lambda: sample(empty(8, 128256, dtype=FP32), *_step(), greedy_only=True)),
    Case("sample, full, bf16", lambda: sample(empty(8, 128256), *_step())),
    Case("sample, full, fp32, 256k ids", lambda: sample(empty(8, 262144, dtype=FP32), *_step(262144))),
    Case("copy_blocks", lambda: copy_blocks(empty(4, 8, 16, 128), empty(4, 8, 16, 128), empty(3, 2, dtype=I32))),
    Case("copy_blocks, masks of 128k ids", lambda: copy_blocks(_masks(4), _masks(9), empty(3, 2, dtype=I32))),
    *_attention_cases(),
    *_linear_cases(),
]
