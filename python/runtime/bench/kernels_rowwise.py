"""The part of the kernel table that is bound by memory: norms, activations, rotary, embedding, step and sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..kernels import step_plan as sp
from ..kernels.embedding import embedding
from ..kernels.kv_store import kv_store
from ..kernels.layer_norm import layer_norm
from ..kernels.prepare_step import prepare_step
from ..kernels.rms_norm import rms_norm
from ..kernels.rotary_kv_store import rotary_kv_store
from ..kernels.sample import sample
from ..kernels.silu_and_mul import silu_and_mul
from ..kernels.step_state import RowState, SampleWorkspace, StepInputs, StepOutputs
from .gpu_timing import copy_bandwidth, microseconds, num_input_sets
from .kernel_cases import BLOCK_SIZE, ModelShapes

DEVICE = "cuda"
DTYPE = torch.bfloat16
TOKENS = (1, 64, 256, 8192)
BATCHES = (1, 64, 256)
MAX_MODEL_LEN = 8192


@dataclass(frozen=True)
class Case:
    """`make` allocates one set of inputs and returns the call on them; `num_bytes` must move in it."""

    name: str
    num_bytes: int
    make: Callable[[], Callable[[], object]]


def _normal(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_()


def _norm(op: Callable[..., object], num_tokens: int, hidden: int, num_vectors: int) -> Callable[[], object]:
    x, residual, out = (_normal(num_tokens, hidden) for _ in range(3))
    return partial(op, x, residual, *(_normal(hidden) for _ in range(num_vectors)), 1e-5, out=out)


def _silu_and_mul(num_tokens: int, width: int) -> Callable[[], object]:
    return partial(silu_and_mul, _normal(num_tokens, 2 * width), out=_normal(num_tokens, width))


def _embedding(num_tokens: int, weight: torch.Tensor) -> Callable[[], object]:
    ids = torch.randint(weight.shape[0], (num_tokens,), dtype=torch.int32, device=DEVICE)
    return partial(embedding, ids, weight, out=_normal(num_tokens, weight.shape[1]))


def _rotary(num_tokens: int, shapes: ModelShapes, with_rotary: bool) -> Callable[[], object]:
    heads = shapes.heads
    counts = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
    q, k, v = torch.split(_normal(num_tokens, sum(counts), heads.head_dim), counts, dim=1)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    k_cache, v_cache = (_normal(num_blocks, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim) for _ in "kv")
    slots = torch.randperm(num_blocks * BLOCK_SIZE, device=DEVICE)[:num_tokens]
    if not with_rotary:
        return partial(kv_store, k, v, slots, k_cache, v_cache)
    positions = torch.randint(MAX_MODEL_LEN, (num_tokens,), dtype=torch.int32, device=DEVICE)
    cos, sin = (_normal(MAX_MODEL_LEN, heads.head_dim // 2, dtype=torch.float32) for _ in "cs")
    return partial(rotary_kv_store, q, k, v, cos, sin, positions, slots, k_cache, v_cache)


def _state(batch: int, vocab_size: int) -> tuple[RowState, StepInputs, StepOutputs]:
    rows = RowState.allocate(
        max_num_seqs=batch, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, vocab_size=vocab_size, device=DEVICE
    )
    inputs = StepInputs.allocate(max_num_seqs=batch, max_num_batched_tokens=8192, device=DEVICE)
    inputs.b_row.copy_(torch.arange(batch + 1))
    inputs.b_seq_len.fill_(1000)
    inputs.row_flags.fill_(sp.ROW_SAMPLE)
    rows.prompt_len.fill_(500)
    rows.seed.copy_(torch.arange(batch + 1))
    rows.token_ids.random_(vocab_size)
    return rows, inputs, StepOutputs.allocate(max_num_seqs=batch, device=DEVICE)


SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": {"flags": sp.GREEDY},
    "temperature": {"flags": 0},
    "top_k 50, top_p 0.9": {"flags": sp.FILTER, "top_k": 50, "top_p": 0.9},
    "top_p 0.9": {"flags": sp.FILTER, "top_p": 0.9},
    "penalties": {"flags": sp.PENALTIES, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "20 logprobs": {"flags": sp.GREEDY | sp.LOGPROBS, "num_logprobs": 20},
}


def _sample(batch: int, vocab_size: int, dtype: torch.dtype, fields: dict[str, float]) -> Callable[[], object]:
    rows, inputs, outputs = _state(batch, vocab_size)
    rows.temperature.fill_(0.7)
    for name, value in fields.items():
        getattr(rows, name).fill_(value)
    workspace = SampleWorkspace.allocate(max_num_seqs=batch, vocab_size=vocab_size, device=DEVICE)
    logits = _normal(batch, vocab_size, dtype=torch.float32).mul_(3.0).to(dtype)
    greedy_only = fields["flags"] == sp.GREEDY
    return partial(sample, logits, rows, inputs, outputs, greedy_only=greedy_only, workspace=workspace)


def _prepare_step(batch: int) -> Callable[[], object]:
    rows, inputs, _ = _state(batch, 32)
    plan = torch.zeros(sp.HEADER_WORDS + 4 * batch, dtype=torch.int32)
    plan[sp.NUM_ROWS] = plan[sp.NUM_DECODE_ROWS] = plan[sp.NUM_TOKENS] = plan[sp.ROWS + 1] = batch
    plan[sp.ROWS] = sp.HEADER_WORDS
    one = torch.tensor([0, 999, 1, sp.ROW_SAMPLE], dtype=torch.int32)
    entries = plan[sp.HEADER_WORDS :].view(batch, 4)
    entries.copy_(one)
    entries[:, 0] = torch.arange(batch)
    return partial(prepare_step, plan.to(DEVICE), rows, inputs)


def cases(shapes: ModelShapes) -> Iterator[tuple[str, Case]]:
    """(op, case) for a model's shapes; the bytes are those of activations, caches and logits read and written."""
    weights = {name: (num_out, num_in) for name, num_out, num_in, _ in shapes.weights}
    vocab_size, hidden = weights["lm_head"]
    width = weights["down"][1]
    heads, size = shapes.heads, DTYPE.itemsize
    kv_bytes, q_bytes = (n * heads.head_dim * size for n in (2 * heads.num_kv_heads, heads.num_heads))
    table = _normal(vocab_size, hidden)
    for n in TOKENS:
        # x and residual read, both written
        norm = Case(f"{n} x {hidden}", 4 * n * hidden * size, partial(_norm, rms_norm, n, hidden, 1))
        yield "rms_norm", norm
        yield "layer_norm", Case(norm.name, norm.num_bytes, partial(_norm, layer_norm, n, hidden, 2))
        yield "silu_and_mul", Case(f"{n} x {width}", 3 * n * width * size, partial(_silu_and_mul, n, width))
        yield "embedding", Case(f"{n} x {hidden}", 2 * n * hidden * size, partial(_embedding, n, table))
        moved = 2 * n * (q_bytes + kv_bytes)
        yield "rotary_kv_store", Case(f"{n} tokens", moved, partial(_rotary, n, shapes, True))
        yield "kv_store", Case(f"{n} tokens", 2 * n * kv_bytes, partial(_rotary, n, shapes, False))
    for batch in BATCHES:
        yield "prepare_step", Case(f"{batch} decode rows", 16 * batch, partial(_prepare_step, batch))
        for dtype in (torch.bfloat16, torch.float32):
            for name, fields in SAMPLERS.items():
                label = f"{name}, {batch} x {vocab_size} {str(dtype).removeprefix('torch.')}"
                moved = batch * vocab_size * dtype.itemsize  # each logit once
                yield "sample", Case(label, moved, partial(_sample, batch, vocab_size, dtype, fields))


def rowwise_rows(shapes: ModelShapes) -> Iterator[dict[str, Any]]:
    """One row of the kernel table for each case, in order; `op` is part of the row."""
    for op, case in cases(shapes):
        sets = [case.make() for _ in range(min(8, num_input_sets(case.num_bytes)))]
        us = microseconds(lambda call: call(), sets)
        rate = case.num_bytes / (us * 1e-6)
        figures = {"us": round(us, 2), "tb_s": round(rate / 1e12, 3)}
        figures["pct_of_copy"] = round(100 * rate / copy_bandwidth(), 1)
        yield {"op": op, "case": case.name, "deterministic": False, **figures}
