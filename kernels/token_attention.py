"""Attention of one new token per row over its paged context (decode)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_partials import attend_splits, reduce_at_once, reduce_in_order, store_partial
from .attention_shapes import DETERMINISTIC_SPLIT, batch_tile, default_key_tile, partials_size
from .attention_tile import (
    MIN_SCORE,
    Scoring,
    attend_range,
    load_block_ids,
    start_row_sum,
    tensor_arguments,
)
from .device import num_sms
from .launch import pdl_options
from .prefetch import LINE, prefetch_l2
from .tile_config import TokenAttentionConfig, token_attention_config
from .workspace import workspace


@triton.jit
def _locate(
    unit, ends, b_seq_len_ptr, sliding_window, HAS_WINDOW: tl.constexpr, UNIT: tl.constexpr, PAIR_UNITS: tl.constexpr
):
    """Where a unit of work lies: row, its length, first unit that its window sees, head, start and stop of the pair."""
    passed = ends <= unit
    row = tl.sum(passed.to(tl.int32), 0)
    row_start = tl.max(tl.where(passed, ends, 0), 0)
    seq_len = tl.load(b_seq_len_ptr + row)
    first_unit = 0
    if HAS_WINDOW:
        first_unit = tl.maximum(seq_len - sliding_window, 0) // UNIT
    row_units = tl.cdiv(seq_len, UNIT) - first_unit + PAIR_UNITS
    head = (unit - row_start) // row_units
    pair_start = row_start + head * row_units
    return row, seq_len, first_unit, head, pair_start, pair_start + row_units


@triton.jit
def _prefetch_tile(
    cache_ptr,
    block_ids,
    head,
    start,
    stride_block,
    stride_head,
    stride_token,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
):
    """K or V of the tile from `start` on, past the end of the row from the padding block."""
    PER_LINE: tl.constexpr = LINE // cache_ptr.dtype.element_ty.itemsize
    LINES: tl.constexpr = (DIM + PER_LINE - 1) // PER_LINE
    dims = tl.minimum(tl.arange(0, LINES) * PER_LINE, HEAD_DIM - 1)
    offsets = (start + tl.arange(0, KEY_TILE)) % BLOCK_SIZE * stride_token
    tokens = block_ids.to(tl.int64) * stride_block + head.to(tl.int64) * stride_head + offsets
    prefetch_l2(cache_ptr + tokens[:, None] + dims[None, :])


@triton.jit(do_not_specialize=["batch"])
def _token_attention_kernel(
    q_ptr,
    k_cache,
    v_cache,
    out_ptr,
    b_loc_ptr,
    b_row_ptr,
    b_start_loc_ptr,
    b_seq_len_ptr,
    slopes_ptr,
    acc_ptr,
    stat_ptr,
    counter_ptr,
    q_stride_token,
    q_stride_head,
    out_stride_token,
    out_stride_head,
    k_stride_block,
    k_stride_head,
    k_stride_token,
    v_stride_block,
    v_stride_head,
    v_stride_token,
    b_loc_stride,
    batch,
    num_kv_heads,
    scale_log2,
    sliding_window,
    soft_cap,
    HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    RAGGED: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    USE_PDL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    REDUCE_ROWS: tl.constexpr,
    REDUCE_PARTS: tl.constexpr,
    BATCH_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    UNIT: tl.constexpr,
    PAIR_UNITS: tl.constexpr,
    MIN_SHARE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """A persistent grid over equal shares of the work.

    The work is one line of units: for each row, for each KV head, its context in units of UNIT tokens, and PAIR_UNITS
    empty ones that stand for what a pair of row and head costs whatever its length: without them the programs that
    meet short rows are the last to end. A program takes a run of units; a run that covers a pair whole writes the
    answer, others leave a partial, and the program that arrives last at the pair adds the partials up.
    """
    program = tl.program_id(0)
    rows = tl.arange(0, BATCH_TILE)
    # before the wait: lengths are older than the kernel before this one, and every kernel lets its successor start
    # only after its own wait
    lens = tl.load(b_seq_len_ptr + rows, mask=rows < batch, other=0)
    units = tl.cdiv(lens, UNIT)
    if HAS_WINDOW:
        units -= tl.maximum(lens - sliding_window, 0) // UNIT
    if RAGGED:
        starts = tl.load(b_start_loc_ptr + rows, mask=rows < batch, other=0)
        stops = tl.load(b_start_loc_ptr + rows + 1, mask=rows < batch, other=0)
        units = tl.where(stops - starts == 1, units, 0)
    units += tl.where(units > 0, PAIR_UNITS, 0)
    ends = tl.cumsum(units, 0) * num_kv_heads
    total = tl.max(ends, 0)
    share = tl.maximum(tl.cdiv(total, tl.num_programs(0)), MIN_SHARE)
    unit = program * share
    stop = tl.minimum(unit + share, total)

    group = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    q_mask = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    if USE_PDL:
        if unit < stop:  # tables and KV cache, but for the newest token, are older than the kernel that makes q
            row, seq_len, first_unit, head, pair_start, _ = _locate(
                unit, ends, b_seq_len_ptr, sliding_window, HAS_WINDOW, UNIT, PAIR_UNITS
            )
            table_ptr = b_loc_ptr + tl.load(b_row_ptr + row).to(tl.int64) * b_loc_stride
            start = (first_unit + unit - pair_start) * UNIT
            block_ids = load_block_ids(table_ptr, start, seq_len, BLOCK_SIZE, KEY_TILE)
            _prefetch_tile(
                k_cache, block_ids, head, start, k_stride_block, k_stride_head, k_stride_token,
                HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE,
            )  # fmt: skip
            _prefetch_tile(
                v_cache, block_ids, head, start, v_stride_block, v_stride_head, v_stride_token,
                HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE,
            )  # fmt: skip
        gdc_wait()
        gdc_launch_dependents()

    if not RAGGED:  # zeros for padding, first of all by the programs that have the least to do
        row = tl.num_programs(0) - 1 - program
        while row < batch:
            if tl.load(b_seq_len_ptr + row) == 0:
                for head in range(num_kv_heads):
                    out_ptrs = out_ptr + row.to(tl.int64) * out_stride_token + dims[None, :]
                    out_ptrs += (head * GROUP + group)[:, None] * out_stride_head
                    tl.store(out_ptrs, tl.zeros([ROWS, DIM], out_ptr.dtype.element_ty), mask=q_mask)
            row += tl.num_programs(0)

    while unit < stop:
        row, seq_len, first_unit, head, pair_start, pair_stop = _locate(
            unit, ends, b_seq_len_ptr, sliding_window, HAS_WINDOW, UNIT, PAIR_UNITS
        )
        work_stop = pair_stop - PAIR_UNITS
        run_stop = tl.minimum(stop, pair_stop)
        if unit < work_stop:
            token = row
            if RAGGED:
                token = tl.load(b_start_loc_ptr + row)
            table_ptr = b_loc_ptr + tl.load(b_row_ptr + row).to(tl.int64) * b_loc_stride

            q_heads = head * GROUP + group
            q_ptrs = q_ptr + token.to(tl.int64) * q_stride_token + q_heads[:, None] * q_stride_head + dims[None, :]
            q = tl.load(q_ptrs, mask=q_mask, other=0.0)
            slopes = tl.zeros([ROWS], tl.float32)
            if HAS_ALIBI:
                slopes = tl.load(slopes_ptr + q_heads, mask=group < GROUP, other=0.0) * 1.4426950408889634

            query_pos = tl.full([ROWS], 0, tl.int32) + (seq_len - 1)
            first_token = (first_unit + unit - pair_start) * UNIT
            last_token = tl.minimum((first_unit + run_stop - pair_start) * UNIT, seq_len)
            begins_pair = unit == pair_start
            if DETERMINISTIC:
                acc, row_max, row_sums = attend_splits(
                    q, k_cache, v_cache, table_ptr, head, first_token, last_token, seq_len,
                    k_stride_block, k_stride_head, k_stride_token, v_stride_block, v_stride_head, v_stride_token,
                    query_pos, slopes, scale_log2, sliding_window, soft_cap, begins_pair, acc_ptr, stat_ptr, unit,
                    HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, PRECISION, GROUP, HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, UNIT,
                    NUM_STAGES,
                )  # fmt: skip
            else:
                acc, row_max, row_sums = attend_range(
                    q, k_cache, v_cache, table_ptr, head, first_token, last_token, seq_len,
                    k_stride_block, k_stride_head, k_stride_token, v_stride_block, v_stride_head, v_stride_token,
                    tl.zeros([ROWS, DIM], tl.float32), tl.full([ROWS], MIN_SCORE, tl.float32),
                    start_row_sum(ROWS, DETERMINISTIC), query_pos, slopes, scale_log2, sliding_window, soft_cap,
                    HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, True, DETERMINISTIC, PRECISION,
                    HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, NUM_STAGES,
                )  # fmt: skip

            out_row_ptr = out_ptr + token.to(tl.int64) * out_stride_token
            if begins_pair & (run_stop >= work_stop):
                out = acc / row_sums[:, None]
                out_ptrs = out_row_ptr + q_heads[:, None] * out_stride_head + dims[None, :]
                tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=q_mask)
            else:
                first_program = pair_start // share
                num_programs = (work_stop - 1) // share - first_program + 1
                if DETERMINISTIC:
                    slot = unit
                else:
                    slot = 2 * program + begins_pair.to(tl.int32)
                if begins_pair or not DETERMINISTIC:
                    store_partial(acc_ptr, stat_ptr, slot, acc, row_max, row_sums, GROUP, ROWS, DIM)
                tl.debug_barrier()  # every thread's stores come before the arrival is counted
                arrived = tl.atomic_add(counter_ptr + row * num_kv_heads + head, 1, sem="acq_rel", scope="gpu")
                if arrived == num_programs - 1:
                    tl.debug_barrier()
                    if DETERMINISTIC:
                        total_acc, total_sum = reduce_in_order(
                            acc_ptr, stat_ptr, pair_start, (first_program + 1) * share, pair_stop,
                            GROUP, REDUCE_ROWS, DIM,
                        )  # fmt: skip
                    else:
                        total_acc, total_sum = reduce_at_once(
                            acc_ptr, stat_ptr, first_program, num_programs, GROUP, REDUCE_ROWS, DIM, REDUCE_PARTS
                        )
                    lanes = tl.arange(0, REDUCE_ROWS)
                    out = total_acc / total_sum[:, None]
                    out_ptrs = out_row_ptr + (head * GROUP + lanes)[:, None] * out_stride_head + dims[None, :]
                    out_mask = (lanes < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
                    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=out_mask)
                    tl.store(counter_ptr + row * num_kv_heads + head, 0)
        unit = run_stop


def launch_token_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    b_loc: torch.Tensor,
    b_row: torch.Tensor,
    b_start_loc: torch.Tensor | None,
    b_seq_len: torch.Tensor,
    max_len: int,
    out: torch.Tensor,
    scoring: Scoring,
    config: TokenAttentionConfig | None = None,
) -> None:
    """Attention of the rows with one new token; with b_start_loc the other rows of a mixed batch are left alone."""
    batch, num_kv_heads, device = b_seq_len.shape[0], k_cache.shape[1], q.device
    tensors = tensor_arguments(q, k_cache, v_cache, b_loc, out)
    group, dim = tensors["GROUP"], tensors["DIM"]
    config = config or token_attention_config(device, q.shape[2], q.dtype, group, batch, scoring.deterministic)
    num_programs = num_sms(device) * config.programs_per_sm
    if scoring.deterministic:
        key_tile, unit = default_key_tile(q.shape[2], q.dtype), DETERMINISTIC_SPLIT
    else:
        key_tile = unit = config.key_tile
    size = partials_size(
        batch,
        q.shape[1],
        num_kv_heads,
        q.shape[2],
        max_len=max_len,
        num_programs=num_programs,
        deterministic=scoring.deterministic,
    )
    reduce_rows = triton.next_power_of_2(group)
    _token_attention_kernel[(num_programs,)](
        **tensors,
        **scoring.kernel_arguments(),
        b_row_ptr=b_row,
        b_start_loc_ptr=b_start_loc,
        b_seq_len_ptr=b_seq_len,
        acc_ptr=workspace("token_attention_acc", size.acc, torch.float32, device),
        stat_ptr=workspace("token_attention_stat", size.stat, torch.float32, device),
        counter_ptr=workspace("token_attention_counter", size.counter, torch.int32, device),
        batch=batch,
        num_kv_heads=num_kv_heads,
        RAGGED=b_start_loc is not None,
        ROWS=max(16, reduce_rows),
        REDUCE_ROWS=reduce_rows,
        REDUCE_PARTS=max(1, min(16, 64 // reduce_rows, 8192 // (reduce_rows * dim))),
        BATCH_TILE=batch_tile(batch),
        KEY_TILE=key_tile,
        UNIT=unit,
        PAIR_UNITS=0 if scoring.deterministic else 1,
        MIN_SHARE=1 if scoring.deterministic else config.min_share,
        NUM_STAGES=config.num_stages,
        num_warps=config.num_warps,
        **pdl_options(q),
    )


def token_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    b_loc: torch.Tensor,
    b_row: torch.Tensor,
    b_seq_len: torch.Tensor,
    max_len: int,
    *,
    sm_scale: float,
    alibi_slopes: torch.Tensor | None = None,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`softmax(q @ K^T * sm_scale + bias) @ V` of the newest token of each row.

    The grid is fixed and lengths are read on the device, so a captured launch serves every length up to max_len.

    Args:
        q: `[batch, heads, head_dim]`, float16, bfloat16 or float32; row i has position b_seq_len[i] - 1.
        k_cache, v_cache: `[num_blocks + 1, num_kv_heads, block_size, head_dim]`, block_size a power of two.
        b_loc: int32 `[rows, max_num_blocks_per_seq]`, block table.
        b_row: int32 `[batch]`, row of b_loc of each batch row.
        b_seq_len: int32 `[batch]`, tokens of context, the new one included; 0: padding, whose output is 0.
        max_len: no b_seq_len is above it; sizes the workspace of deterministic mode.
        sm_scale: factor of the scores, above 0.
        alibi_slopes: float32 `[heads]` or None; bias `slope * key_position`.
        sliding_window: keys that a query sees, itself included; 0: all.
        soft_cap: scores become `soft_cap * tanh(score / soft_cap)`; 0: off.
        deterministic: bitwise equal rows whatever the batch; equal to context_attention's.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    scoring = Scoring(sm_scale, alibi_slopes, sliding_window, soft_cap, deterministic)
    launch_token_attention(q, k_cache, v_cache, b_loc, b_row, None, b_seq_len, max_len, out, scoring)
    return out
