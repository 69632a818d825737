"""Partial results of token attention: what several programs leave for one pair of row and KV head, and their sum."""

import triton
import triton.language as tl

from .attention_tile import (
    MIN_SCORE,
    attention_step,
    finish_row_sum,
    load_block_ids,
    load_kv_tile,
    merge_partial,
    start_row_sum,
)


@triton.jit
def store_partial(
    acc_ptr,
    stat_ptr,
    slot,
    acc,
    row_max,
    row_sum,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The GROUP rows of a pair that count."""
    group = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    in_group = group < GROUP
    line = slot.to(tl.int64) * GROUP + group
    tl.store(stat_ptr + line * 2, row_max, mask=in_group)
    tl.store(stat_ptr + line * 2 + 1, row_sum, mask=in_group)
    tl.store(acc_ptr + line[:, None] * DIM + dims[None, :], acc, mask=in_group[:, None])


@triton.jit
def attend_splits(
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
    query_pos,
    slopes,
    scale_log2,
    sliding_window,
    soft_cap,
    fold,
    acc_ptr,
    stat_ptr,
    slot,
    HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Keys first..stop in deterministic mode, one partial for each SPLIT of them.

    With `fold` they are the first ones of their row and are added up in order, the result of which is returned.
    Otherwise what comes before them is not known here, and each is stored, from `slot` on. One loop over all tiles,
    since one for each split would empty the pipeline at its end.
    """
    ROWS: tl.constexpr = q.shape[0]
    acc = tl.zeros([ROWS, DIM], tl.float32)
    row_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    part = tl.zeros([ROWS, DIM], tl.float32)
    part_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    part_sum = start_row_sum(ROWS, True)
    block_ids = load_block_ids(table_ptr, first, seq_len, BLOCK_SIZE, KEY_TILE)
    for start in tl.range(first, stop, KEY_TILE, num_stages=NUM_STAGES):
        k = load_kv_tile(
            k_cache, block_ids, head, start, seq_len, k_stride_block, k_stride_head, k_stride_token,
            HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, True,
        )  # fmt: skip
        v = load_kv_tile(
            v_cache, block_ids, head, start, seq_len, v_stride_block, v_stride_head, v_stride_token,
            HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, True,
        )  # fmt: skip
        block_ids = load_block_ids(table_ptr, start + KEY_TILE, seq_len, BLOCK_SIZE, KEY_TILE)
        part, part_max, part_sum = attention_step(
            q, k, v, part, part_max, part_sum, query_pos, start + tl.arange(0, KEY_TILE), slopes,
            scale_log2, sliding_window, soft_cap,
            HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, True, True, PRECISION,
        )  # fmt: skip
        end = start + KEY_TILE
        if (end % SPLIT == 0) | (end >= stop):
            part_sums = finish_row_sum(part_sum, True)
            if fold:
                acc, row_max, row_sum = merge_partial(acc, row_max, row_sum, part, part_max, part_sums)
            else:
                at = slot + (start - first) // SPLIT
                store_partial(acc_ptr, stat_ptr, at, part, part_max, part_sums, GROUP, ROWS, DIM)
            part = tl.zeros([ROWS, DIM], tl.float32)
            part_max = tl.full([ROWS], MIN_SCORE, tl.float32)
            part_sum = start_row_sum(ROWS, True)
    return acc, row_max, row_sum


@triton.jit
def reduce_in_order(
    acc_ptr,
    stat_ptr,
    first,
    second,
    stop,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Adds the partial in slot `first` and those in second..stop, one after the other."""
    group = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    in_group = group < GROUP
    row_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for i in range(second - 1, stop):
        slot = tl.where(i < second, first, i)
        line = slot.to(tl.int64) * GROUP + group
        part_max = tl.load(stat_ptr + line * 2, mask=in_group, other=MIN_SCORE, cache_modifier=".cg")
        part_sum = tl.load(stat_ptr + line * 2 + 1, mask=in_group, other=0.0, cache_modifier=".cg")
        part = tl.load(
            acc_ptr + line[:, None] * DIM + dims[None, :], mask=in_group[:, None], other=0.0, cache_modifier=".cg"
        )
        acc, row_max, row_sum = merge_partial(acc, row_max, row_sum, part, part_max, part_sum)
    return acc, row_sum


@triton.jit
def reduce_at_once(
    acc_ptr,
    stat_ptr,
    first_program,
    count,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Adds the partials of `count` programs, PARTS of them at a time.

    The first program reached this pair of row and head last, the others reached it first.
    """
    group = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    parts = tl.arange(0, PARTS)
    row_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for i in range(0, count, PARTS):
        slot = 2 * (first_program + i + parts) + tl.where(i + parts == 0, 1, 0)
        line = slot.to(tl.int64)[:, None] * GROUP + group[None, :]
        mask = (i + parts < count)[:, None] & (group < GROUP)[None, :]
        part_max = tl.load(stat_ptr + line * 2, mask=mask, other=MIN_SCORE, cache_modifier=".cg")
        part_sum = tl.load(stat_ptr + line * 2 + 1, mask=mask, other=0.0, cache_modifier=".cg")
        part = tl.load(
            acc_ptr + line[:, :, None] * DIM + dims[None, None, :],
            mask=mask[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        new_max = tl.maximum(row_max, tl.max(part_max, 0))
        weight = tl.exp2(part_max - new_max[None, :])
        alpha = tl.exp2(row_max - new_max)
        row_sum = row_sum * alpha + tl.sum(part_sum * weight, 0)
        acc = acc * alpha[:, None] + tl.sum(part * weight[:, :, None], 0)
        row_max = new_max
    return acc, row_sum
