"""Adds up the partial results that several programs of token attention leave for one pair of row and KV head."""

import triton
import triton.language as tl

from .attention_tile import MIN_SCORE, merge_partial


@triton.jit
def reduce_in_order(acc_ptr, stat_ptr, slot, count, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Adds `count` partials from `slot` on, one after the other."""
    group = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    in_group = group < GROUP
    row_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for i in range(count):
        line = (slot + i).to(tl.int64) * GROUP + group
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
