"""One tile of attention: paged loads of K and V, scores, and the running softmax shared by both attention ops.

The running softmax follows Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), and
FlashAttention-2 (Dao, 2023). Exponents are base 2: scores carry a factor log2(e).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .attention_shapes import padded_dim

LOG2_E = 1.4426950408889634

# Start of a running maximum: finite, so that a row whose keys are all masked stays free of NaN.
MIN_SCORE = tl.constexpr(-1.0e30)


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` treats its operands: float32 in three tf32 products, so that nothing visible is lost."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@dataclass(frozen=True)
class Scoring:
    """How a score is made of a product of query and key; the fields are arguments of the ops."""

    sm_scale: float
    alibi_slopes: torch.Tensor | None
    sliding_window: int
    soft_cap: float
    deterministic: bool

    @property
    def is_plain(self) -> bool:
        """A scaled product and nothing else, in any order of addition."""
        return not (self.alibi_slopes is not None or self.sliding_window or self.soft_cap or self.deterministic)

    def kernel_arguments(self) -> dict[str, Any]:
        return dict(
            slopes_ptr=self.alibi_slopes,
            scale_log2=self.sm_scale * LOG2_E,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
            HAS_ALIBI=self.alibi_slopes is not None,
            HAS_WINDOW=self.sliding_window > 0,
            HAS_SOFT_CAP=self.soft_cap > 0.0,
            DETERMINISTIC=self.deterministic,
        )


def tensor_arguments(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, b_loc: torch.Tensor, out: torch.Tensor
) -> dict[str, Any]:
    """Pointers, strides and shapes that both attention kernels take; checks what they rely on."""
    head_dim = q.shape[2]
    assert all(t.stride(-1) == 1 for t in (q, k_cache, v_cache, b_loc, out)) and out.shape == q.shape
    assert q.shape[1] % k_cache.shape[1] == 0, f"{q.shape[1]} heads over {k_cache.shape[1]} KV heads"
    assert k_cache.shape[3] == head_dim and k_cache.shape == v_cache.shape
    return dict(
        q_ptr=q,
        k_cache=k_cache,
        v_cache=v_cache,
        out_ptr=out,
        b_loc_ptr=b_loc,
        q_stride_token=q.stride(0),
        q_stride_head=q.stride(1),
        out_stride_token=out.stride(0),
        out_stride_head=out.stride(1),
        k_stride_block=k_cache.stride(0),
        k_stride_head=k_cache.stride(1),
        k_stride_token=k_cache.stride(2),
        v_stride_block=v_cache.stride(0),
        v_stride_head=v_cache.stride(1),
        v_stride_token=v_cache.stride(2),
        b_loc_stride=b_loc.stride(0),
        PRECISION=dot_precision(q.dtype),
        BLOCK_SIZE=k_cache.shape[2],
        GROUP=q.shape[1] // k_cache.shape[1],
        HEAD_DIM=head_dim,
        DIM=padded_dim(head_dim),
    )


@triton.jit
def load_block_ids(table_ptr, start, seq_len, BLOCK_SIZE: tl.constexpr, KEY_TILE: tl.constexpr):
    """Block of each position start..start + KEY_TILE; the padding block past seq_len.

    Loops ask for the ids of the next tile while they work on this one: a load that waits for a load inside one
    iteration would cost the pipeline half of its depth.
    """
    if BLOCK_SIZE >= KEY_TILE:
        return tl.load(table_ptr + start // BLOCK_SIZE, mask=start < seq_len, other=0)
    else:
        pos = start + tl.arange(0, KEY_TILE)
        return tl.load(table_ptr + pos // BLOCK_SIZE, mask=pos < seq_len, other=0)


@triton.jit
def load_kv_tile(
    cache_ptr,
    block_ids,
    head,
    start,
    seq_len,
    stride_block,
    stride_head,
    stride_token,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """K or V `[KEY_TILE, DIM]` of one head for positions start..start + KEY_TILE; zeros past seq_len if BOUNDED."""
    pos = start + tl.arange(0, KEY_TILE)
    dims = tl.arange(0, DIM)
    token_offset = block_ids.to(tl.int64) * stride_block + pos % BLOCK_SIZE * stride_token
    ptrs = cache_ptr + head.to(tl.int64) * stride_head + token_offset[:, None] + dims[None, :]
    if BOUNDED and HEAD_DIM < DIM:
        return tl.load(ptrs, mask=(pos < seq_len)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif BOUNDED:
        return tl.load(ptrs, mask=(pos < seq_len)[:, None], other=0.0)
    elif HEAD_DIM < DIM:
        return tl.load(ptrs, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def attention_step(
    q,
    k,
    v,
    acc,
    row_max,
    row_sum,
    query_pos,
    key_pos,
    slopes,
    scale_log2,
    sliding_window,
    soft_cap,
    HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds one tile of keys to the running (acc, row_max, row_sum) of the query rows.

    Deterministic: the sum of a row comes from the matrix unit too, whose order of addition within a row does
    not depend on the shape of the tile, where a reduction over registers does.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    scale = scale_log2
    if HAS_SOFT_CAP:
        # tanh(x) = 2 * sigmoid(2 x) - 1; scale_log2 carries log2(e)
        scores = soft_cap * (2.0 / (1.0 + tl.exp2(scores * (-2.0 * scale_log2 / soft_cap))) - 1.0)
        scale = 1.4426950408889634
    if HAS_ALIBI:
        # relative to the query, which shifts a whole row and keeps the numbers small
        scores = scores * scale + slopes[:, None] * (key_pos[None, :] - query_pos[:, None]).to(tl.float32)
        scale = 1.0
    if MASKED:
        visible = key_pos[None, :] <= query_pos[:, None]
        if HAS_WINDOW:
            visible = visible & (key_pos[None, :] > query_pos[:, None] - sliding_window)
        scores = tl.where(visible, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
    p = tl.exp2(scores * scale - new_max[:, None])
    alpha = tl.exp2(row_max - new_max)
    if DETERMINISTIC:
        ones = tl.full([v.shape[0], 16], 1.0, v.dtype)
        row_sum = tl.dot(p.to(v.dtype), ones, row_sum * alpha[:, None], input_precision=PRECISION)
    else:
        row_sum = row_sum * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def attend_range(
    q,
    k_cache,
    v_cache,
    table_ptr,
    head,
    first,
    stop,
    seq_len,
    k_stride_block,
    k_stride_head,
    k_stride_token,
    v_stride_block,
    v_stride_head,
    v_stride_token,
    acc,
    row_max,
    row_sum,
    query_pos,
    slopes,
    scale_log2,
    sliding_window,
    soft_cap,
    HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Adds keys first..stop of one head to the running softmax; without BOUNDED every query row sees all of them."""
    block_ids = load_block_ids(table_ptr, first, seq_len, BLOCK_SIZE, KEY_TILE)
    for start in tl.range(first, stop, KEY_TILE, num_stages=NUM_STAGES):
        k = load_kv_tile(
            k_cache, block_ids, head, start, seq_len, k_stride_block, k_stride_head, k_stride_token,
            HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, BOUNDED,
        )  # fmt: skip
        v = load_kv_tile(
            v_cache, block_ids, head, start, seq_len, v_stride_block, v_stride_head, v_stride_token,
            HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, BOUNDED,
        )  # fmt: skip
        block_ids = load_block_ids(table_ptr, start + KEY_TILE, seq_len, BLOCK_SIZE, KEY_TILE)
        acc, row_max, row_sum = attention_step(
            q, k, v, acc, row_max, row_sum, query_pos, start + tl.arange(0, KEY_TILE), slopes,
            scale_log2, sliding_window, soft_cap,
            HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, BOUNDED, DETERMINISTIC, PRECISION,
        )  # fmt: skip
    return acc, row_max, row_sum


@triton.jit
def start_row_sum(ROWS: tl.constexpr, DETERMINISTIC: tl.constexpr):
    """Zero of a running sum: `[ROWS]`, or `[ROWS, 16]` equal columns in deterministic mode."""
    if DETERMINISTIC:
        return tl.zeros([ROWS, 16], tl.float32)
    else:
        return tl.zeros([ROWS], tl.float32)


@triton.jit
def finish_row_sum(row_sum, DETERMINISTIC: tl.constexpr):
    if DETERMINISTIC:
        return tl.max(row_sum, 1)
    else:
        return row_sum


@triton.jit
def merge_partial(acc, row_max, row_sum, part_acc, part_max, part_sum):
    """Adds a partial softmax to a running one; explicit fma, so that every caller rounds alike."""
    new_max = tl.maximum(row_max, part_max)
    alpha = tl.exp2(row_max - new_max)
    beta = tl.exp2(part_max - new_max)
    acc = tl.fma(acc, tl.broadcast_to(alpha[:, None], acc.shape), part_acc * beta[:, None])
    row_sum = tl.fma(row_sum, alpha, part_sum * beta)
    return acc, new_max, row_sum
