"""Context attention for compute capability 9.0, in Gluon: one warp loads, two warp groups compute.

The same answer as `context_attention`'s Triton kernel, for the plain case. The division of work and the schedule within
a warp group are those of FlashAttention-3 (Shah et al., 2024): the scores of the next tile and the values of the last
one are in flight while the scores of this one become probabilities.
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
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .attention_shapes import batch_tile
from .attention_tile import LOG2_E, Scoring
from .device import num_sms

# Triton 3.7 renamed it
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

GROUP_ROWS = gl.constexpr(64)  # query rows of a warp group, the least that its products take
ROWS = 128
KEY_TILE = 64
NUM_STAGES = 4
HEAD_DIMS = (64, 128)

# 12 warps of 168 registers are a whole register file; the loading warp leaves most of its share to the others
MAX_REGISTERS = 168
COMPUTE_REGISTERS = gl.constexpr(232)
LOAD_REGISTERS = gl.constexpr(40)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _tile_ends(b_start_loc_ptr, batch, TOKENS: gl.constexpr, BATCH_TILE: gl.constexpr, num_warps: gl.constexpr):
    """[BATCH_TILE]: tiles of query tokens up to the end of each row; rows with a single new token have none."""
    rows = gl.arange(0, BATCH_TILE, gl.BlockedLayout([1], [32], [num_warps], [0]))
    starts = gl.load(b_start_loc_ptr + rows, mask=rows < batch, other=0)
    stops = gl.load(b_start_loc_ptr + rows + 1, mask=rows < batch, other=0)
    tiles = gl.where(stops - starts > 1, (stops - starts + TOKENS - 1) // TOKENS, 0)
    return gl.associative_scan(tiles, 0, _add)


@gluon.jit
def _work_index(turn):
    """What this program does in its n-th turn: every second turn backwards, since work gets less along the line."""
    programs = gl.num_programs(0)
    program = gl.program_id(0)
    return turn * programs + gl.where(turn % 2 == 0, program, programs - 1 - program)


@gluon.jit
def _locate(ends, index, b_start_loc_ptr, b_seq_len_ptr, num_kv_heads, TOKENS: gl.constexpr):
    """(head, row, first token in q, new tokens, context length, first new token of the tile).

    Tiles of a row run from its end to its start, the longest first; the heads of a tile follow each other.
    """
    tile = gl.max(ends, 0) - 1 - index // num_kv_heads
    passed = ends <= tile
    row = gl.sum(passed.to(gl.int32), 0)
    first_token = (tile - gl.max(gl.where(passed, ends, 0), 0)) * TOKENS
    start_loc = gl.load(b_start_loc_ptr + row)
    num_new = gl.load(b_start_loc_ptr + row + 1) - start_loc
    return index % num_kv_heads, row, start_loc, num_new, gl.load(b_seq_len_ptr + row), first_token


@gluon.jit
def _num_key_tiles(num_new, seq_len, first_token, TOKENS: gl.constexpr, TILE: gl.constexpr):
    # at least one, whatever the arguments are: the partitions wait for each other
    return gl.maximum((gl.minimum(seq_len - num_new + first_token + TOKENS, seq_len) + TILE - 1) // TILE, 1)


@gluon.jit
def _load_tile(desc, first_row, count, ready, free, buffers):
    """The `count`-th tile of K or V since the program began, into its buffer as soon as that is free."""
    STAGES: gl.constexpr = buffers.shape[0]
    stage = count % STAGES
    mbarrier.wait(free.index(stage), (count // STAGES & 1) ^ 1)
    mbarrier.expect(ready.index(stage), desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [first_row, 0], ready.index(stage), buffers.index(stage))


@gluon.jit
def _load_partition(
    tables,
    kv,
    barriers,
    sizes,
    BLOCK_SIZE: gl.constexpr,
    TOKENS: gl.constexpr,
    BATCH_TILE: gl.constexpr,
):
    """One warp: K and V of every tile, in the order in which they are needed."""
    b_loc_ptr, b_row_ptr, b_start_loc_ptr, b_seq_len_ptr = tables
    k_desc, v_desc, k_buffers, v_buffers = kv
    k_ready, k_free, v_ready, v_free = barriers
    batch, num_kv_heads, b_loc_stride = sizes
    TILE: gl.constexpr = k_desc.block_shape[0]
    ends = _tile_ends(b_start_loc_ptr, batch, TOKENS, BATCH_TILE, 1)
    total = gl.max(ends, 0) * num_kv_heads
    count = 0
    for turn in range((total + gl.num_programs(0) - 1) // gl.num_programs(0)):
        index = _work_index(turn)
        if index < total:
            head, row, start_loc, num_new, seq_len, first_token = _locate(
                ends, index, b_start_loc_ptr, b_seq_len_ptr, num_kv_heads, TOKENS
            )
            table_ptr = b_loc_ptr + gl.load(b_row_ptr + row).to(gl.int64) * b_loc_stride
            num_tiles = _num_key_tiles(num_new, seq_len, first_token, TOKENS, TILE)
            block = gl.load(table_ptr)
            for j in range(num_tiles):
                first_row = (block * num_kv_heads + head) * BLOCK_SIZE + j * TILE % BLOCK_SIZE
                block = gl.load(table_ptr + (j + 1) * TILE // BLOCK_SIZE, mask=j + 1 < num_tiles, other=0)
                _load_tile(k_desc, first_row, count, k_ready, k_free, k_buffers)
                _load_tile(v_desc, first_row, count, v_ready, v_free, v_buffers)
                count += 1


@gluon.jit
def _softmax_step(scores, row_max, row_sum, scale_log2):
    """(probabilities, factor of what was summed so far, maximum, sum) after one more tile."""
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
    probabilities = gl.exp2(scores * scale_log2 - new_max[:, None])
    alpha = gl.exp2(row_max - new_max)
    return probabilities, alpha, new_max, row_sum * alpha + gl.sum(probabilities, 1)


@gluon.jit
def _zero_past_end(buffer, num_valid, LAYOUT: gl.constexpr):
    """Values of tokens that are not there: a probability of 0 times what lies in the block would be NaN if that is.

    Both warp groups do it, each before its own product; they write the same.
    """
    keys = gl.arange(0, buffer.shape[0], gl.SliceLayout(1, LAYOUT))
    values = buffer.load(LAYOUT)
    buffer.store(gl.where((keys < num_valid)[:, None], values, gl.full_like(values, 0.0)))
    fence_async_shared()
    barrier()


@gluon.jit
def _compute_partition(
    WARP_GROUP: gl.constexpr,
    tables,
    kv,
    barriers,
    sizes,
    rows,
    scale_log2,
    GROUP: gl.constexpr,
    TOKENS: gl.constexpr,
    BATCH_TILE: gl.constexpr,
):
    """One warp group: GROUP_ROWS of the query rows of every tile."""
    b_start_loc_ptr, b_seq_len_ptr = tables[2], tables[3]
    k_desc, k_buffers, v_buffers = kv[0], kv[2], kv[3]
    k_ready, k_free, v_ready, v_free = barriers
    batch, num_kv_heads = sizes[0], sizes[1]
    q_ptr, q_stride_token, q_stride_head, out_ptr, out_stride_token, out_stride_head = rows
    TILE: gl.constexpr = k_desc.block_shape[0]
    DIM: gl.constexpr = k_desc.block_shape[1]
    STAGES: gl.constexpr = k_buffers.shape[0]
    DTYPE: gl.constexpr = k_desc.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    VALUE_ROWS: gl.constexpr = gl.SliceLayout(1, VALUES)
    PROBABILITIES: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    FIRST: gl.constexpr = WARP_GROUP * GROUP_ROWS
    lanes = FIRST + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, MEMORY))
    dims = gl.arange(0, DIM, gl.SliceLayout(0, MEMORY))
    key_pos = gl.arange(0, TILE, gl.SliceLayout(0, SCORES))
    no_scores = gl.full([GROUP_ROWS, TILE], 0.0, gl.float32, SCORES)

    ends = _tile_ends(b_start_loc_ptr, batch, TOKENS, BATCH_TILE, 4)
    total = gl.max(ends, 0) * num_kv_heads
    count = 0
    for turn in range((total + gl.num_programs(0) - 1) // gl.num_programs(0)):
        index = _work_index(turn)
        if index < total:
            head, row, start_loc, num_new, seq_len, first_token = _locate(
                ends, index, b_start_loc_ptr, b_seq_len_ptr, num_kv_heads, TOKENS
            )
            num_tiles = _num_key_tiles(num_new, seq_len, first_token, TOKENS, TILE)
            new_token = first_token + lanes // GROUP
            token = (start_loc + new_token).to(gl.int64)
            q_heads = head * GROUP + lanes % GROUP
            mask = ((lanes < TOKENS * GROUP) & (new_token < num_new))[:, None] & (dims < DIM)[None, :]
            q_ptrs = q_ptr + (token * q_stride_token + q_heads * q_stride_head)[:, None] + dims[None, :]
            q = gl.convert_layout(gl.load(q_ptrs, mask=mask, other=0.0), gl.DotOperandLayout(0, SCORES, 2))
            first_pos = seq_len - num_new + first_token
            query_pos = first_pos + (FIRST + gl.arange(0, GROUP_ROWS, SCORE_ROWS)) // GROUP
            num_unmasked = gl.maximum((first_pos + FIRST // GROUP + 1) // TILE, 1)

            mbarrier.wait(k_ready.index(count % STAGES), count // STAGES & 1)
            scores = warpgroup_mma(q, k_buffers.index(count % STAGES).permute((1, 0)), no_scores, use_acc=False)
            mbarrier.arrive(k_free.index(count % STAGES), count=1)
            scores = gl.where(key_pos[None, :] <= query_pos[:, None], scores, float("-inf"))
            row_max = gl.full([GROUP_ROWS], -1.0e30, gl.float32, SCORE_ROWS)
            row_sum = gl.full([GROUP_ROWS], 0.0, gl.float32, SCORE_ROWS)
            probabilities, alpha, row_max, row_sum = _softmax_step(scores, row_max, row_sum, scale_log2)
            p = gl.convert_layout(probabilities.to(DTYPE), PROBABILITIES)
            values = gl.full([GROUP_ROWS, DIM], 0.0, gl.float32, VALUES)
            # tiles that every query row sees whole, then those around the diagonal: a branch would part the products
            for BOUNDED in gl.static_range(2):
                first = num_unmasked if BOUNDED else 1
                stop = num_tiles if BOUNDED else num_unmasked
                for j in range(first, stop):
                    stage = count % STAGES
                    phase = count // STAGES & 1
                    count += 1
                    next_stage = count % STAGES
                    mbarrier.wait(k_ready.index(next_stage), count // STAGES & 1)
                    next_scores = warpgroup_mma(
                        q, k_buffers.index(next_stage).permute((1, 0)), no_scores, use_acc=False, is_async=True
                    )
                    mbarrier.wait(v_ready.index(stage), phase)
                    acc = warpgroup_mma(p, v_buffers.index(stage), values, is_async=True)
                    scores = warpgroup_mma_wait(1, deps=(next_scores,))
                    mbarrier.arrive(k_free.index(next_stage), count=1)
                    if BOUNDED:
                        scores = gl.where((j * TILE + key_pos)[None, :] <= query_pos[:, None], scores, float("-inf"))
                    probabilities, alpha, row_max, row_sum = _softmax_step(scores, row_max, row_sum, scale_log2)
                    values, p = warpgroup_mma_wait(0, deps=(acc, p))
                    mbarrier.arrive(v_free.index(stage), count=1)
                    values = values * gl.convert_layout(alpha, VALUE_ROWS)[:, None]
                    p = gl.convert_layout(probabilities.to(DTYPE), PROBABILITIES)

            stage = count % STAGES
            mbarrier.wait(v_ready.index(stage), count // STAGES & 1)
            if num_tiles * TILE > seq_len:
                _zero_past_end(v_buffers.index(stage), seq_len - (num_tiles - 1) * TILE, MEMORY)
            values = warpgroup_mma(p, v_buffers.index(stage), values)
            mbarrier.arrive(v_free.index(stage), count=1)
            count += 1
            out = values / gl.convert_layout(row_sum, VALUE_ROWS)[:, None]
            out_ptrs = out_ptr + (token * out_stride_token + q_heads * out_stride_head)[:, None] + dims[None, :]
            gl.store(out_ptrs, gl.convert_layout(out.to(DTYPE), MEMORY), mask=mask)


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
    num_kv_heads,
    batch,
    scale_log2,
    BLOCK_SIZE: gl.constexpr,
    GROUP: gl.constexpr,
    ROWS: gl.constexpr,
    BATCH_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A persistent grid over one line of tiles: a KV head and ROWS query rows each, as in the Triton kernel."""
    TOKENS: gl.constexpr = ROWS // GROUP
    shape: gl.constexpr = [STAGES] + k_desc.block_shape
    k_buffers = gl.allocate_shared_memory(k_desc.dtype, shape, k_desc.layout)
    v_buffers = gl.allocate_shared_memory(v_desc.dtype, shape, v_desc.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(k_free.index(i), count=ROWS // GROUP_ROWS)
        mbarrier.init(v_free.index(i), count=ROWS // GROUP_ROWS)
    fence_async_shared()
    tables = (b_loc_ptr, b_row_ptr, b_start_loc_ptr, b_seq_len_ptr)
    kv = (k_desc, v_desc, k_buffers, v_buffers)
    barriers = (k_ready, k_free, v_ready, v_free)
    sizes = (batch, num_kv_heads, b_loc_stride)
    rows = (q_ptr, q_stride_token, q_stride_head, out_ptr, out_stride_token, out_stride_head)
    gl.warp_specialize(
        [
            (_compute_partition, (0, tables, kv, barriers, sizes, rows, scale_log2, GROUP, TOKENS, BATCH_TILE)),
            (_compute_partition, (1, tables, kv, barriers, sizes, rows, scale_log2, GROUP, TOKENS, BATCH_TILE)),
            (_load_partition, (tables, kv, barriers, sizes, BLOCK_SIZE, TOKENS, BATCH_TILE)),
        ],
        [4, 1],
        [COMPUTE_REGISTERS, LOAD_REGISTERS],
    )


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
    programs = min(num_sms(q.device), num_kv_heads * most_tiles)
    _context_attention_hopper_kernel[(programs,)](
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
        num_kv_heads=num_kv_heads,
        batch=batch,
        scale_log2=scoring.sm_scale * LOG2_E,
        BLOCK_SIZE=k_cache.shape[2],
        GROUP=q.shape[1] // num_kv_heads,
        ROWS=ROWS,
        BATCH_TILE=batch_tile(batch),
        STAGES=NUM_STAGES,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
    )
