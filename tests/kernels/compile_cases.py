"""The launches that tools/check_kernels.py compiles: every kernel in the variants that a real model uses.

A case calls the public op with empty host tensors of real shapes; nothing is computed, so their memory is not touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from runtime.kernels.copy_blocks import copy_blocks
from runtime.kernels.embedding import embedding
from runtime.kernels.gelu_tanh import gelu_tanh
from runtime.kernels.kv_store import kv_store
from runtime.kernels.layer_norm import layer_norm
from runtime.kernels.prepare_step import prepare_step
from runtime.kernels.rms_norm import rms_norm
from runtime.kernels.rotary_kv_store import rotary_kv_store
from runtime.kernels.silu_and_mul import silu_and_mul
from runtime.kernels.step_state import RowState, StepInputs, StepOutputs

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


CASES = [
    Case("rms_norm 4096 bf16", lambda: _norm(4096, BF16, rms_norm, 1)),
    Case("rms_norm 8192 fp16", lambda: _norm(8192, FP16, rms_norm, 1)),
    Case("rms_norm 1024 fp32", lambda: _norm(1024, FP32, rms_norm, 1)),
    Case("layer_norm 4096 bf16", lambda: _norm(4096, BF16, layer_norm, 2)),
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
    Case("copy_blocks", lambda: copy_blocks(empty(4, 8, 16, 128), empty(4, 8, 16, 128), empty(3, 2, dtype=I32))),
]
