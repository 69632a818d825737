"""Paged causal attention in plain torch.

Both public functions bring their rows to one layout, queries [kv_heads, rows, queries, head_dim] against keys
[kv_heads, rows, length, head_dim], where the query heads that share a KV head lie one after the other. Then either one
softmax runs over the whole length or, with `deterministic`, one partial softmax (maximum, sum, weighted values) per
SPLIT keys counted from position 0, merged in that order (online softmax, Milakov and Gimelshein, 2018). Matrix products
of one fixed shape keep those partials independent of the batch and of the chunking.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys of one partial result, and query rows of one matrix product, of the deterministic path.
SPLIT = 256
TILE_ROWS = 16
# Scores, or gathered key elements, that one piece of the work may hold, unless one tile or row needs more: 1 MiB in
# float32, which stays in a core's cache and in memory that torch already has.
MAX_PIECE = 1 << 18


@dataclass(frozen=True)
class _Scoring:
    """What makes a score of q.k. `alibi_slopes`: [kv_heads, 1, queries, 1] or None."""

    sm_scale: float
    alibi_slopes: Tensor | None
    sliding_window: int
    soft_cap: float

    def __call__(self, products: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Overwrites products [..., queries, keys]; -inf where query_pos [..., queries, 1] must not see key_pos."""
        scores = products.mul_(self.sm_scale)
        if self.soft_cap:
            scores = scores.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        if self.alibi_slopes is not None:
            # slope * key position, less a constant per query: near keys then lose nothing to rounding.
            scores = scores.add_(self.alibi_slopes * (key_pos - query_pos))
        hidden = key_pos > query_pos
        if self.sliding_window:
            hidden = hidden | (key_pos <= query_pos - self.sliding_window)
        return scores.masked_fill_(hidden, float("-inf"))


def _whole_attention(q: Tensor, k: Tensor, v: Tensor, query_pos: Tensor, scoring: _Scoring) -> Tensor:
    key_pos = torch.arange(k.shape[2], device=k.device)
    scores = scoring(torch.matmul(q, k.transpose(-1, -2)), query_pos, key_pos)
    return torch.matmul(scores.softmax(dim=-1), v)


def _tiled_product(a: Tensor, b: Tensor) -> Tensor:
    """a [heads, rows, m, i] times b [heads, rows, i, j] in products of TILE_ROWS rows; m is a multiple of it."""
    tiles = a.reshape(-1, TILE_ROWS, a.shape[-1])
    repeated = b.unsqueeze(2).expand(-1, -1, a.shape[2] // TILE_ROWS, -1, -1).reshape(-1, *b.shape[2:])
    return torch.bmm(tiles, repeated).view(*a.shape[:3], -1)


def _split_attention(q: Tensor, k: Tensor, v: Tensor, query_pos: Tensor, scoring: _Scoring) -> Tensor:
    """As `_whole_attention`, for whole tiles of queries and whole splits of keys."""
    maximum = q.new_full((*q.shape[:3], 1), float("-inf"))
    total, values = torch.zeros_like(maximum), torch.zeros_like(q)
    for start in range(0, k.shape[2], SPLIT):
        keys = slice(start, start + SPLIT)
        key_pos = torch.arange(start, start + SPLIT, device=k.device)
        scores = scoring(_tiled_product(q, k[:, :, keys].transpose(-1, -2)), query_pos, key_pos)
        new_maximum = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
        # A split that a row may not see at all must not make NaN of -inf - -inf.
        reference = new_maximum.masked_fill(new_maximum.isneginf(), 0.0)
        weights, rescale = torch.exp(scores - reference), torch.exp(maximum - reference)
        total = total * rescale + weights.sum(dim=-1, keepdim=True)
        values = values * rescale + _tiled_product(weights, v[:, :, keys])
        maximum = new_maximum
    return values / total


def _pad_rows(x: Tensor, multiple: int) -> Tensor:
    """Zeros after dim -2, up to a multiple."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % multiple))


def _attend(q: Tensor, k: Tensor, v: Tensor, query_pos: Tensor, scoring: _Scoring, deterministic: bool) -> Tensor:
    """Attention of q [kv_heads, rows, queries, head_dim]; query_pos int [rows, queries, 1]."""
    if not deterministic:
        return _whole_attention(q, k, v, query_pos, scoring)
    num_queries = q.shape[2]
    if scoring.alibi_slopes is not None:
        scoring = _Scoring(
            scoring.sm_scale, _pad_rows(scoring.alibi_slopes, TILE_ROWS), scoring.sliding_window, scoring.soft_cap
        )
    padded_pos = _pad_rows(query_pos, TILE_ROWS)
    out = _split_attention(_pad_rows(q, TILE_ROWS), _pad_rows(k, SPLIT), _pad_rows(v, SPLIT), padded_pos, scoring)
    return out[:, :, :num_queries]


def _gather(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """Cached keys or values of blocks [rows, n] as float32 [kv_heads, rows, length, head_dim]."""
    kv_heads, block_size, head_dim = cache.shape[1:]
    first_head = blocks.flatten() * kv_heads
    heads = first_head + torch.arange(kv_heads, dtype=blocks.dtype, device=blocks.device).unsqueeze(1)
    # one head's block is one contiguous row, and index_select of rows several times faster than an index of two dims
    found = cache.flatten(0, 1).flatten(1).index_select(0, heads.flatten())
    return found.view(kv_heads, blocks.shape[0], -1, head_dim)[:, :, :length].float()


def _context_piece(
    q: Tensor, k: Tensor, v: Tensor, first_pos: int, scoring: _Scoring, slopes: Tensor | None, deterministic: bool
) -> Tensor:
    """One row's queries [n, heads, head_dim] from `first_pos` on, against its keys [kv_heads, 1, length, head_dim]."""
    num_queries, num_heads, head_dim = q.shape
    kv_heads = k.shape[0]
    group = num_heads // kv_heads
    grouped = q.transpose(0, 1).reshape(kv_heads, 1, group * num_queries, head_dim).float()
    query_pos = torch.arange(first_pos, first_pos + num_queries, device=q.device).repeat(group).view(1, -1, 1)
    if slopes is not None:
        slopes = slopes.view(kv_heads, group).repeat_interleave(num_queries, dim=1).view(kv_heads, 1, -1, 1)
    scoring = _Scoring(scoring.sm_scale, slopes, scoring.sliding_window, scoring.soft_cap)
    out = _attend(grouped, k, v, query_pos, scoring, deterministic)
    return out.reshape(num_heads, num_queries, head_dim).transpose(0, 1)


def context_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    b_loc: Tensor,
    b_row: Tensor,
    b_start_loc: Tensor,
    b_seq_len: Tensor,
    max_new_tokens: int,
    *,
    sm_scale: float,
    alibi_slopes: Tensor | None = None,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    deterministic: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of a ragged batch whose new keys and values are in the cache already.

    Args:
        q: [tokens, heads, head_dim]; token t of row i has position b_seq_len[i] - (new tokens of i) + t.
        k_cache, v_cache: [blocks, kv_heads, block_size, head_dim].
        b_loc: int32 [slots, max blocks of a row], block ids; b_row: int32 [batch], row of b_loc.
        b_start_loc: int32 [batch + 1], first token of each row, the number of tokens last.
        b_seq_len: int32 [batch], context lengths with the new tokens.
        max_new_tokens: the longest run of new tokens, for a launch grid.
        alibi_slopes: float32 [heads]; the bias is slope * key position.
        sliding_window: a query sees only so many last keys, itself included; 0 sees all.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); 0 leaves them.
        deterministic: bits that do not depend on batch or chunking.
    """
    del max_new_tokens
    out = torch.empty_like(q) if out is None else out
    scoring = _Scoring(sm_scale, None, sliding_window, soft_cap)
    starts, lengths = b_start_loc.tolist(), b_seq_len.tolist()
    for i, length in enumerate(lengths):
        if length == 0:
            out[starts[i] : starts[i + 1]] = 0.0
            continue
        blocks = b_loc[b_row[i], : -(-length // k_cache.shape[2])].unsqueeze(0)
        k, v = _gather(k_cache, blocks, length), _gather(v_cache, blocks, length)
        first, last = starts[i], starts[i + 1]
        # Whole tiles of queries, so that the cut changes nothing in the deterministic path either.
        step = max(MAX_PIECE // (length * q.shape[1]) // TILE_ROWS, 1) * TILE_ROWS
        for a in range(first, last, step):
            b = min(a + step, last)
            out[a:b] = _context_piece(q[a:b], k, v, length - last + a, scoring, alibi_slopes, deterministic)
    return out


def _clear(v: Tensor, unused: Tensor) -> None:
    """Zeros v [kv_heads, rows, length, head_dim] where `unused` [rows, length]."""
    if v.is_cuda:
        v.masked_fill_(unused.unsqueeze(-1), 0.0)
        return
    # few places of few rows on a CPU, which need not wait to know them
    row, position = unused.nonzero().unbind(1)
    if len(row):
        v[:, row, position] = 0.0


def _groups_of_like_length(b_seq_len: Tensor, elements_per_token: int) -> list[Tensor]:
    """Rows to attend together: padding to the longest at most doubles the work, and a group fits MAX_PIECE."""
    lengths, order = b_seq_len.sort()
    groups, first = [], 0
    for i, length in enumerate(sorted_lengths := lengths.tolist()):
        too_uneven = length > 2 * max(sorted_lengths[first], 64)
        if i > first and (too_uneven or (i + 1 - first) * length * elements_per_token > MAX_PIECE):
            groups.append(order[first:i])
            first = i
    return [*groups, order[first:]]


def token_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    b_loc: Tensor,
    b_row: Tensor,
    b_seq_len: Tensor,
    max_len: int,
    *,
    sm_scale: float,
    alibi_slopes: Tensor | None = None,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    deterministic: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of one new token a row, q [batch, heads, head_dim], at position b_seq_len[i] - 1; 0 without context.

    The rest as `context_attention`. `max_len` is at least the longest context; with it on the host, nothing here waits
    for a GPU.
    """
    kv_heads, block_size, head_dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    slopes = None if alibi_slopes is None else alibi_slopes.view(kv_heads, 1, group, 1)
    scoring = _Scoring(sm_scale, slopes, sliding_window, soft_cap)
    out = torch.empty_like(q) if out is None else out

    def attend(rows: Tensor | slice, length: int) -> None:
        seq_len = b_seq_len[rows].view(-1, 1, 1)
        blocks = b_loc[b_row[rows], : -(-length // block_size)]
        k, v = _gather(k_cache, blocks, length), _gather(v_cache, blocks, length)
        # Past a row's end lies whatever a block held before; a weight of zero does not undo a NaN.
        _clear(v, torch.arange(length, device=q.device) >= seq_len.view(-1, 1))
        grouped = q[rows].view(-1, kv_heads, group, head_dim).transpose(0, 1).float()
        result = _attend(grouped, k, v, (seq_len - 1).expand(-1, group, 1), scoring, deterministic)
        out[rows] = result.transpose(0, 1).reshape(-1, *q.shape[1:]).to(q.dtype)

    if q.device.type != "cpu":
        attend(slice(None), max_len)
    else:
        for rows in _groups_of_like_length(b_seq_len, kv_heads * head_dim):
            attend(rows, max(int(b_seq_len[rows[-1]]), 1))
    return out.masked_fill_((b_seq_len == 0).view(-1, 1, 1), 0.0)
