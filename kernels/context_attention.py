"""Causal attention of a ragged batch of new tokens over their paged context (prefill and mixed steps)."""

from __future__ import annotations

import importlib

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import launch
from .attention_shapes import DETERMINISTIC_SPLIT, batch_tile, default_key_tile
from .attention_tile import (
    MIN_SCORE,
    Scoring,
    attend_range,
    finish_row_sum,
    merge_partial,
    start_row_sum,
    tensor_arguments,
)
from .launch import pdl_options
from .tile_config import ContextAttentionConfig, context_attention_config
from .token_attention import launch_token_attention


@triton.jit(do_not_specialize=["batch"])
def _context_attention_kernel(
    q_ptr,
    k_cache,
    v_cache,
    out_ptr,
    b_loc_ptr,
    b_row_ptr,
    b_start_loc_ptr,
    b_seq_len_ptr,
    slopes_ptr,
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
    scale_log2,
    sliding_window,
    soft_cap,
    HAS_ALIBI: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    USE_PDL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BATCH_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """One program: one KV head and ROWS query rows, which are consecutive tokens of one batch row times its heads.

    The grid is an upper bound that the host knows; surplus programs leave. Tiles of a row run from its end to
    its start, so the longest come first. Rows with a single new token belong to token attention.
    """
    TOKENS: tl.constexpr = ROWS // GROUP
    batch_rows = tl.arange(0, BATCH_TILE)
    starts = tl.load(b_start_loc_ptr + batch_rows, mask=batch_rows < batch, other=0)
    stops = tl.load(b_start_loc_ptr + batch_rows + 1, mask=batch_rows < batch, other=0)
    tiles = tl.where(stops - starts > 1, tl.cdiv(stops - starts, TOKENS), 0)
    ends = tl.cumsum(tiles, 0)
    tile = tl.max(ends, 0) - 1 - tl.program_id(1)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    if tile < 0:
        return
    passed = ends <= tile
    row = tl.sum(passed.to(tl.int32), 0)
    first_token = (tile - tl.max(tl.where(passed, ends, 0), 0)) * TOKENS
    start_loc = tl.load(b_start_loc_ptr + row)
    num_new = tl.load(b_start_loc_ptr + row + 1) - start_loc
    seq_len = tl.load(b_seq_len_ptr + row)
    table_ptr = b_loc_ptr + tl.load(b_row_ptr + row).to(tl.int64) * b_loc_stride
    head = tl.program_id(0)

    lanes = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    new_token = first_token + lanes // GROUP
    q_heads = head * GROUP + lanes % GROUP
    valid = (lanes < TOKENS * GROUP) & (new_token < num_new)
    mask = valid[:, None] & (dims < HEAD_DIM)[None, :]
    q_row = (start_loc + new_token).to(tl.int64)
    q = tl.load(
        q_ptr + (q_row * q_stride_token + q_heads * q_stride_head)[:, None] + dims[None, :], mask=mask, other=0.0
    )
    slopes = tl.zeros([ROWS], tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(slopes_ptr + q_heads, mask=valid, other=0.0) * 1.4426950408889634

    cached = seq_len - num_new
    query_pos = cached + new_token
    key_stop = tl.minimum(cached + first_token + TOKENS, seq_len)
    first_key = 0
    unmasked_stop = (cached + first_token + 1) // SPLIT * SPLIT
    if HAS_WINDOW:
        first_key = tl.maximum(cached + first_token + 1 - sliding_window, 0) // SPLIT * SPLIT
        unmasked_stop = first_key
    row_max = tl.full([ROWS], MIN_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    # keys that every query row sees first, then those around the diagonal
    for BOUNDED in tl.static_range(2):
        first = unmasked_stop if BOUNDED else first_key
        stop = key_stop if BOUNDED else unmasked_stop
        if DETERMINISTIC:
            for split in range(first, stop, SPLIT):
                part_max = tl.full([ROWS], MIN_SCORE, tl.float32)
                part_sum = start_row_sum(ROWS, DETERMINISTIC)
                part = tl.zeros([ROWS, DIM], tl.float32)
                part, part_max, part_sum = attend_range(
                    q, k_cache, v_cache, table_ptr, head, split, tl.minimum(split + SPLIT, stop), seq_len,
                    k_stride_block, k_stride_head, k_stride_token, v_stride_block, v_stride_head, v_stride_token,
                    part, part_max, part_sum, query_pos, slopes, scale_log2, sliding_window, soft_cap,
                    HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, BOUNDED, DETERMINISTIC, PRECISION,
                    HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, NUM_STAGES,
                )  # fmt: skip
                part_sums = finish_row_sum(part_sum, DETERMINISTIC)
                acc, row_max, row_sum = merge_partial(acc, row_max, row_sum, part, part_max, part_sums)
        else:
            acc, row_max, row_sum = attend_range(
                q, k_cache, v_cache, table_ptr, head, first, stop, seq_len,
                k_stride_block, k_stride_head, k_stride_token, v_stride_block, v_stride_head, v_stride_token,
                acc, row_max, row_sum, query_pos, slopes, scale_log2, sliding_window, soft_cap,
                HAS_ALIBI, HAS_WINDOW, HAS_SOFT_CAP, BOUNDED, DETERMINISTIC, PRECISION,
                HEAD_DIM, DIM, BLOCK_SIZE, KEY_TILE, NUM_STAGES,
            )  # fmt: skip
    out = acc / row_sum[:, None]
    out_ptrs = out_ptr + (q_row * out_stride_token + q_heads * out_stride_head)[:, None] + dims[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def num_query_tiles(num_tokens: int, batch: int, max_new_tokens: int, tokens: int) -> int:
    """An upper bound of the tiles of `tokens` query tokens; a row ends with at most one partial tile."""
    most: int = min(triton.cdiv(num_tokens, tokens) + batch, batch * triton.cdiv(max_new_tokens, tokens))
    return most


def launch_context_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    b_loc: torch.Tensor,
    b_row: torch.Tensor,
    b_start_loc: torch.Tensor,
    b_seq_len: torch.Tensor,
    max_new_tokens: int,
    out: torch.Tensor,
    scoring: Scoring,
    config: ContextAttentionConfig | None = None,
) -> None:
    """Attention of the rows with more than one new token."""
    batch, head_dim = b_seq_len.shape[0], q.shape[2]
    tensors = tensor_arguments(q, k_cache, v_cache, b_loc, out)
    if config is None and scoring.is_plain and launch.capability(q.device) == (9, 0):
        hopper = importlib.import_module(".context_attention_hopper", __package__)
        if hopper.supports(q, k_cache, v_cache):
            most_tiles = num_query_tiles(q.shape[0], batch, max_new_tokens, hopper.ROWS // tensors["GROUP"])
            hopper.launch(q, k_cache, v_cache, b_loc, b_row, b_start_loc, b_seq_len, most_tiles, out, scoring)
            return
    config = config or context_attention_config(q.device, head_dim, q.dtype, scoring.deterministic)
    key_tile = default_key_tile(head_dim, q.dtype) if scoring.deterministic else config.key_tile
    rows = max(config.query_tile, triton.next_power_of_2(tensors["GROUP"]))
    most_tiles = num_query_tiles(q.shape[0], batch, max_new_tokens, rows // tensors["GROUP"])
    _context_attention_kernel[(k_cache.shape[1], most_tiles)](
        **tensors,
        **scoring.kernel_arguments(),
        b_row_ptr=b_row,
        b_start_loc_ptr=b_start_loc,
        b_seq_len_ptr=b_seq_len,
        batch=batch,
        ROWS=rows,
        BATCH_TILE=batch_tile(batch),
        KEY_TILE=key_tile,
        SPLIT=DETERMINISTIC_SPLIT if scoring.deterministic else key_tile,
        NUM_STAGES=config.num_stages,
        num_warps=config.num_warps,
        **pdl_options(q),
    )


def context_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    b_loc: torch.Tensor,
    b_row: torch.Tensor,
    b_start_loc: torch.Tensor,
    b_seq_len: torch.Tensor,
    max_new_tokens: int,
    *,
    sm_scale: float,
    alibi_slopes: torch.Tensor | None = None,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`softmax(q @ K^T * sm_scale + bias) @ V`, causal, of every new token over its row's context.

    New K and V are in the cache already. Rows with one new token go through the token attention kernel, whose
    grid splits their context; nothing about the batch's mix is read on the host.

    Args:
        q: `[tokens, heads, head_dim]`; token t of row i has position b_seq_len[i] - (new tokens of i) + t.
        k_cache, v_cache: `[num_blocks + 1, num_kv_heads, block_size, head_dim]`, block_size a power of two.
        b_loc: int32 `[rows, max_num_blocks_per_seq]`, block table.
        b_row: int32 `[batch]`, row of b_loc of each batch row.
        b_start_loc: int32 `[batch + 1]`, first token of each row in q; the last entry is their number.
        b_seq_len: int32 `[batch]`, tokens of context, the new ones included.
        max_new_tokens: no row has more new tokens.
        sm_scale, alibi_slopes, sliding_window, soft_cap: as in token_attention.
        deterministic: bitwise equal rows whatever the batch and the chunks; equal to token_attention's.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    scoring = Scoring(sm_scale, alibi_slopes, sliding_window, soft_cap, deterministic)
    tables = (b_loc, b_row, b_start_loc, b_seq_len)
    if max_new_tokens > 1:
        launch_context_attention(q, k_cache, v_cache, *tables, max_new_tokens, out, scoring)
    # a batch whose rows all have max_new_tokens > 1 holds no single token
    if max_new_tokens == 1 or q.shape[0] < b_seq_len.shape[0] * max_new_tokens:
        max_len = b_loc.shape[1] * k_cache.shape[2]
        launch_token_attention(q, k_cache, v_cache, *tables, max_len, out, scoring)
    return out
