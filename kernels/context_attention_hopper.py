"""Context attention for compute capability 9.0, in Gluon: the softmax of one tile runs beside the products of others.

The same answer as `context_attention`'s Triton kernel, for the plain case. The schedule within a warp group is that of
FlashAttention-3 (Shah et al., 2024): the scores of the next tile and the values of the last one are in flight while the
scores of this one become probabilities.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .attention_shapes import batch_tile
from .attention_tile import LOG2_E, Scoring

# Triton 3.7 renamed it
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

ROWS = 128
KEY_TILE = 64
NUM_STAGES = 4
HEAD_DIMS = (64, 128)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _start_copy(desc, tile, wanted, first_row, ready, buffers, BLOCK_SIZE: gl.constexpr):
    """Starts the copy of one tile of K or V into its buffer, if it is wanted; its block begins at `first_row`."""
    STAGES: gl.constexpr = buffers.shape[0]
    TILE: gl.constexpr = desc.block_shape[0]
    bar = ready.index(tile % STAGES)
    mbarrier.expect(bar, desc.block_type.nbytes, pred=wanted)
    tma.async_copy_global_to_shared(
        desc, [first_row + tile * TILE % BLOCK_SIZE, 0], bar, buffers.index(tile % STAGES), pred=wanted
    )


@gluon.jit
def _wait_for(ready, tile, wanted):
    STAGES: gl.constexpr = ready.shape[0]
    mbarrier.wait(ready.index(tile % STAGES), (tile // STAGES) & 1, pred=wanted)


@gluon.jit
def _zero_past_end(buffer, num_valid, LAYOUT: gl.constexpr):
    """Values of tokens that are not there: a probability of 0 times what lies in the block would be NaN if that is."""
    keys = gl.arange(0, buffer.shape[0], gl.SliceLayout(1, LAYOUT))
    values = buffer.load(LAYOUT)
    buffer.store(gl.where((keys < num_valid)[:, None], values, gl.full_like(values, 0.0)))
    fence_async_shared()
    barrier()


@gluon.jit(do_not_specialize=["batch"])
def _context_attention_hopper_kernel(
    q_ptr,
    k_desc,
    v_desc,
    out_ptr,
    b_loc_ptr,
    b_row_ptr,
    b_start_loc_ptr,
    b_seq_len_ptr,
    q_stride_token,
    q_stride_head,
    out_stride_token,
    out_stride_head,
    b_loc_stride,
    block_rows,
    batch,
    scale_log2,
    BLOCK_SIZE: gl.constexpr,
    GROUP: gl.constexpr,
    DIM: gl.constexpr,
    ROWS: gl.constexpr,
    BATCH_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    num_warps: gl.constexpr,
):
    """One program: one KV head and ROWS query rows, as in `_context_attention_kernel`."""
    TILE: gl.constexpr = k_desc.block_shape[0]
    TOKENS: gl.constexpr = ROWS // GROUP
    DTYPE: gl.constexpr = k_desc.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, TILE, 16])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, DIM, 16])
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    VALUE_ROWS: gl.constexpr = gl.SliceLayout(1, VALUES)
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [num_warps, 1], [1, 0])
    BATCH: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])

    batch_rows = gl.arange(0, BATCH_TILE, BATCH)
    in_batch = batch_rows < batch
    starts = gl.load(b_start_loc_ptr + batch_rows, mask=in_batch, other=0)
    stops = gl.load(b_start_loc_ptr + batch_rows + 1, mask=in_batch, other=0)
    tiles = gl.where(stops - starts > 1, (stops - starts + TOKENS - 1) // TOKENS, 0)
    ends = gl.associative_scan(tiles, 0, _add)
    tile = gl.max(ends, 0) - 1 - gl.program_id(1)  # the longest first
    if tile < 0:
        return
    passed = ends <= tile
    row = gl.sum(passed.to(gl.int32), 0)
    first_token = (tile - gl.max(gl.where(passed, ends, 0), 0)) * TOKENS
    start_loc = gl.load(b_start_loc_ptr + row)
    num_new = gl.load(b_start_loc_ptr + row + 1) - start_loc
    seq_len = gl.load(b_seq_len_ptr + row)
    table_ptr = b_loc_ptr + gl.load(b_row_ptr + row).to(gl.int64) * b_loc_stride
    head = gl.program_id(0)
    cached = seq_len - num_new
    num_tiles = (gl.minimum(cached + first_token + TOKENS, seq_len) + TILE - 1) // TILE
    num_unmasked = (cached + first_token + 1) // TILE

    k_buffers = gl.allocate_shared_memory(DTYPE, [STAGES, TILE, DIM], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(DTYPE, [STAGES, TILE, DIM], v_desc.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
    fence_async_shared()
    barrier()
    head_row = head * BLOCK_SIZE
    first_row = head_row
    for i in gl.static_range(STAGES):
        first_row = gl.load(table_ptr + i * TILE // BLOCK_SIZE, mask=i < num_tiles, other=0) * block_rows + head_row
        _start_copy(k_desc, i, i < num_tiles, first_row, k_ready, k_buffers, BLOCK_SIZE)
        _start_copy(v_desc, i, i < num_tiles, first_row, v_ready, v_buffers, BLOCK_SIZE)

    lanes = gl.arange(0, ROWS, gl.SliceLayout(1, MEMORY))
    dims = gl.arange(0, DIM, gl.SliceLayout(0, MEMORY))
    new_token = first_token + lanes // GROUP
    q_heads = head * GROUP + lanes % GROUP
    mask = ((lanes < TOKENS * GROUP) & (new_token < num_new))[:, None] & (dims < DIM)[None, :]
    token = (start_loc + new_token).to(gl.int64)
    q_ptrs = q_ptr + (token * q_stride_token + q_heads * q_stride_head)[:, None] + dims[None, :]
    q = gl.convert_layout(gl.load(q_ptrs, mask=mask, other=0.0), gl.DotOperandLayout(0, SCORES, 2))
    query_pos = cached + first_token + gl.arange(0, ROWS, SCORE_ROWS) // GROUP
    key_pos = gl.arange(0, TILE, gl.SliceLayout(0, SCORES))

    no_scores = gl.full([ROWS, TILE], 0.0, gl.float32, SCORES)
    row_max = gl.full([ROWS], -1.0e30, gl.float32, SCORE_ROWS)
    row_sum = gl.full([ROWS], 0.0, gl.float32, SCORE_ROWS)
    acc = warpgroup_mma_init(gl.full([ROWS, DIM], 0.0, gl.float32, VALUES))
    p = gl.full([ROWS, TILE], 0.0, DTYPE, gl.DotOperandLayout(0, VALUES, 2))
    _wait_for(k_ready, 0, True)
    scores = warpgroup_mma(q, k_buffers.index(0).permute((1, 0)), no_scores, use_acc=False)
    for j in range(num_tiles):
        k_next = j + STAGES
        next_block = gl.load(table_ptr + k_next * TILE // BLOCK_SIZE, mask=k_next < num_tiles, other=0)
        # one product past the end is made of an old tile and never looked at
        _wait_for(k_ready, j + 1, j + 1 < num_tiles)
        next_scores = warpgroup_mma(
            q, k_buffers.index((j + 1) % STAGES).permute((1, 0)), no_scores, use_acc=False, is_async=True
        )
        if j >= num_unmasked:
            scores = gl.where((j * TILE + key_pos)[None, :] <= query_pos[:, None], scores, float("-inf"))
        new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
        probabilities = gl.exp2(scores * scale_log2 - new_max[:, None])
        alpha = gl.exp2(row_max - new_max)
        row_sum = row_sum * alpha + gl.sum(probabilities, 1)
        row_max = new_max
        # the values of the tile before are there; the operands that its product read may go
        so_far, _ = warpgroup_mma_wait(1, deps=(acc, p))
        so_far = so_far * gl.convert_layout(alpha, VALUE_ROWS)[:, None]
        p = gl.convert_layout(probabilities.to(DTYPE), gl.DotOperandLayout(0, VALUES, 2))
        _wait_for(v_ready, j, True)
        if (j + 1) * TILE > seq_len:
            _zero_past_end(v_buffers.index(j % STAGES), seq_len - j * TILE, MEMORY)
        acc = warpgroup_mma(p, v_buffers.index(j % STAGES), so_far, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(next_scores,))
        # every warp has read K of this tile and V of the one before
        barrier()
        v_wanted = (j > 0) & (k_next - 1 < num_tiles)
        _start_copy(v_desc, k_next - 1, v_wanted, first_row, v_ready, v_buffers, BLOCK_SIZE)
        first_row = next_block * block_rows + head_row
        _start_copy(k_desc, k_next, k_next < num_tiles, first_row, k_ready, k_buffers, BLOCK_SIZE)
    total, _ = warpgroup_mma_wait(0, deps=(acc, p))
    out = total / gl.convert_layout(row_sum, VALUE_ROWS)[:, None]
    out_ptrs = out_ptr + (token * out_stride_token + q_heads * out_stride_head)[:, None] + dims[None, :]
    gl.store(out_ptrs, gl.convert_layout(out.to(DTYPE), MEMORY), mask=mask)


def _descriptor(cache: torch.Tensor) -> TensorDescriptor:
    """The cache as rows of one head's token."""
    rows = cache.view(-1, cache.shape[3])
    box = [KEY_TILE, cache.shape[3]]
    dtype = gl.bfloat16 if cache.dtype == torch.bfloat16 else gl.float16
    return TensorDescriptor.from_tensor(rows, box, gl.NVMMASharedLayout.get_default_for(box, dtype))


def supports(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> bool:
    """Whether the kernel takes these tensors, on a device of compute capability 9.0."""
    aligned = all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (k_cache, v_cache))
    return (
        aligned
        and q.dtype.itemsize == 2
        and q.shape[2] in HEAD_DIMS
        and k_cache.shape[2] % KEY_TILE == 0
        and q.shape[1] // k_cache.shape[1] <= ROWS
    )


def launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    b_loc: torch.Tensor,
    b_row: torch.Tensor,
    b_start_loc: torch.Tensor,
    b_seq_len: torch.Tensor,
    most_tiles: int,
    out: torch.Tensor,
    scoring: Scoring,
) -> None:
    """As `launch_context_attention`; no more than `most_tiles` tiles of ROWS query rows."""
    batch, num_kv_heads = b_seq_len.shape[0], k_cache.shape[1]
    group = q.shape[1] // num_kv_heads
    _context_attention_hopper_kernel[(num_kv_heads, most_tiles)](
        q_ptr=q,
        k_desc=_descriptor(k_cache),
        v_desc=_descriptor(v_cache),
        out_ptr=out,
        b_loc_ptr=b_loc,
        b_row_ptr=b_row,
        b_start_loc_ptr=b_start_loc,
        b_seq_len_ptr=b_seq_len,
        q_stride_token=q.stride(0),
        q_stride_head=q.stride(1),
        out_stride_token=out.stride(0),
        out_stride_head=out.stride(1),
        b_loc_stride=b_loc.stride(0),
        block_rows=num_kv_heads * k_cache.shape[2],
        batch=batch,
        scale_log2=scoring.sm_scale * LOG2_E,
        BLOCK_SIZE=k_cache.shape[2],
        GROUP=group,
        DIM=k_cache.shape[3],
        ROWS=ROWS,
        BATCH_TILE=batch_tile(batch),
        STAGES=NUM_STAGES,
        num_warps=8,
    )
