"""The part of `sample` that finds what min_p, top_k and top_p leave, without a sort.

All of it is done on x = (logit - largest) / temperature. Ids with x < FLOOR are dropped at no cost: the Gumbel noise
of `sample` lies in (-2.9, 23), so none of them can win against the largest. Four launches, of fixed grids:

1. the largest logit of each chunk;
2. how many ids of each chunk, and what mass exp(x), lie above each of 16 fixed pivots;
3. a pivot below the threshold and close to it is picked, and the ids above it are collected if they are few;
4. one program a row searches the threshold among these (or in the whole row), an eighth of its bracket a pass.

Picking a pivot first, and searching among the few values above it, follows Qrita (Park et al., arXiv 2602.01518).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import step_plan as sp
from .sample_edit import is_edited, load_logits
from .step_state import SampleWorkspace

FLOOR = -30.0
NUM_PIVOTS = SampleWorkspace.NUM_PIVOTS

_SAMPLE = tl.constexpr(sp.ROW_SAMPLE)
_FILTER = tl.constexpr(sp.FILTER)
_FILTER_OR_GREEDY = tl.constexpr(sp.FILTER | sp.GREEDY)
_FLOOR = tl.constexpr(FLOOR)
_NUM_PIVOTS = tl.constexpr(NUM_PIVOTS)
_MAX_PASSES = tl.constexpr(12)  # 30 / 8**8 is below the resolution of float32


@triton.jit
def _is_filtered(row_flags, flags):
    return ((row_flags & _SAMPLE) != 0) & ((flags & _FILTER_OR_GREEDY) == _FILTER)


@triton.jit
def _row_max(chunk_max_ptr, num_chunks, BLOCK_C: tl.constexpr):
    chunks = tl.arange(0, BLOCK_C)
    return tl.max(tl.load(chunk_max_ptr + chunks, mask=chunks < num_chunks, other=float("-inf")), axis=0)


@triton.jit
def chunk_max_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    flags_ptr,
    chunk_max_ptr,
    logits_stride,
    vocab_size,
    num_chunks,
    USE_PDL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid [batch, parts]; chunk_max [batch, chunks]."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    flags = tl.load(flags_ptr + tl.load(b_row_ptr + i))
    if _is_filtered(tl.load(row_flags_ptr + i), flags):
        line, edited = logits_ptr + i * logits_stride, edited_ptr + i * vocab_size
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            x = load_logits(line, edited, is_edited(flags), ids, ids < vocab_size)
            tl.store(chunk_max_ptr + i * num_chunks + chunk, tl.max(x, axis=0))


@triton.jit
def pivot_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    flags_ptr,
    temperature_ptr,
    chunk_max_ptr,
    pivot_counts_ptr,
    pivot_masses_ptr,
    logits_stride,
    vocab_size,
    num_chunks,
    USE_PDL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid [batch, parts]; counts and masses float32 [batch, chunks, NUM_PIVOTS]."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(b_row_ptr + i)
    flags = tl.load(flags_ptr + row)
    if _is_filtered(tl.load(row_flags_ptr + i), flags):
        inverse = 1.0 / tl.load(temperature_ptr + row)
        largest = _row_max(chunk_max_ptr + i * num_chunks, num_chunks, BLOCK_C)
        line, edited = logits_ptr + i * logits_stride, edited_ptr + i * vocab_size
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            x = (load_logits(line, edited, is_edited(flags), ids, ids < vocab_size) - largest) * inverse
            mass = tl.exp(x)
            out = (i * num_chunks + chunk) * _NUM_PIVOTS
            for j in tl.static_range(_NUM_PIVOTS):
                above = x >= _FLOOR * (j * j) / ((_NUM_PIVOTS - 1) * (_NUM_PIVOTS - 1))
                tl.store(pivot_counts_ptr + out + j, tl.sum(above.to(tl.float32), axis=0))
                tl.store(pivot_masses_ptr + out + j, tl.sum(tl.where(above, mass, 0.0), axis=0))


@triton.jit
def _pick_pivot(counts_ptr, masses_ptr, top_k, top_p, min_p, num_chunks, vocab_size, BLOCK_C: tl.constexpr):
    """The highest pivot that surely lies below the threshold.

    Returns the pivot, how many ids of the row lie above it, how many of each chunk, and the mass above FLOOR.
    """
    chunks, pivots = tl.arange(0, BLOCK_C), tl.arange(0, _NUM_PIVOTS)
    at = chunks[:, None] * _NUM_PIVOTS + pivots[None, :]
    mask = (chunks < num_chunks)[:, None] & (pivots >= 0)[None, :]
    counts = tl.load(counts_ptr + at, mask=mask, other=0.0)
    row_counts = tl.sum(counts, axis=0)
    row_masses = tl.sum(tl.load(masses_ptr + at, mask=mask, other=0.0), axis=0)
    total = tl.sum(tl.where(pivots == _NUM_PIVOTS - 1, row_masses, 0.0), axis=0)
    if (top_k > 0) & (top_k < vocab_size):
        below = row_counts >= top_k
    elif min_p > 0.0:
        below = _FLOOR * (pivots * pivots).to(tl.float32) / ((_NUM_PIVOTS - 1) * (_NUM_PIVOTS - 1)) <= tl.log(min_p)
    else:
        below = row_masses >= top_p * total
    index = tl.min(tl.where(below, pivots, _NUM_PIVOTS - 1), axis=0)
    pivot = _FLOOR + 0.0 * total
    for j in tl.static_range(_NUM_PIVOTS):  # the same constants as pivot_kernel's
        pivot = tl.where(index == j, _FLOOR * (j * j) / ((_NUM_PIVOTS - 1) * (_NUM_PIVOTS - 1)), pivot)
    chosen = tl.sum(tl.where((pivots == index)[None, :], counts, 0.0), axis=1)
    return pivot, tl.sum(chosen, axis=0).to(tl.int32), chosen, total


@triton.jit
def collect_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    flags_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    chunk_max_ptr,
    pivot_counts_ptr,
    pivot_masses_ptr,
    candidates_ptr,
    logits_stride,
    vocab_size,
    num_chunks,
    MAX_CANDIDATES: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid [batch, parts]; candidates float32 [batch, MAX_CANDIDATES], values of x in the order of the ids."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(b_row_ptr + i)
    flags = tl.load(flags_ptr + row)
    if _is_filtered(tl.load(row_flags_ptr + i), flags):
        at = i * num_chunks * _NUM_PIVOTS
        inverse = 1.0 / tl.load(temperature_ptr + row)
        largest = _row_max(chunk_max_ptr + i * num_chunks, num_chunks, BLOCK_C)
        line, edited = logits_ptr + i * logits_stride, edited_ptr + i * vocab_size
        pivot, count, chunk_counts, _ = _pick_pivot(
            pivot_counts_ptr + at,
            pivot_masses_ptr + at,
            tl.load(top_k_ptr + row),
            tl.load(top_p_ptr + row),
            tl.load(min_p_ptr + row),
            num_chunks,
            vocab_size,
            BLOCK_C,
        )
        first = tl.where(count <= MAX_CANDIDATES, tl.program_id(1), num_chunks)
        for chunk in range(first, num_chunks, tl.num_programs(1)):
            before = tl.sum(tl.where(tl.arange(0, BLOCK_C) < chunk, chunk_counts, 0.0), axis=0).to(tl.int32)
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            x = (load_logits(line, edited, is_edited(flags), ids, ids < vocab_size) - largest) * inverse
            above = x >= pivot
            place = before + tl.cumsum(above.to(tl.int32), axis=0) - 1
            tl.store(candidates_ptr + i * MAX_CANDIDATES + place, x, mask=above)


@triton.jit
def _load_x(
    candidates_ptr, logits_ptr, edited_ptr, collected, edited, start, count, largest, inverse, BLOCK: tl.constexpr
):
    at = start + tl.arange(0, BLOCK)
    if collected:
        x = tl.load(candidates_ptr + at, mask=at < count, other=float("-inf"))
    else:
        x = (load_logits(logits_ptr, edited_ptr, edited, at, at < count) - largest) * inverse
    return x


@triton.jit
def _search(
    candidates_ptr,
    logits_ptr,
    edited_ptr,
    collected,
    edited,
    count,
    largest,
    inverse,
    target,
    low,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest value whose upper set reaches `target`, by mass or by count; `low` if none above it does.

    The result is at most that value, and no other value lies between but those that float32 hardly tells from it.
    """
    lanes = tl.arange(0, 8)
    high = 1e-6 + 0.0 * low
    weight_low, weight_high = 3.0e38 + 0.0 * low, 0.0 * low
    least = 2.0 + 0.0 * low
    passes = 0
    while (passes < _MAX_PASSES) & (weight_low - weight_high >= least) & (high - low > 1e-6):
        width = (high - low) * 0.125
        pivots = low + width * lanes.to(tl.float32)
        sums = tl.zeros([8, BLOCK], tl.float32)
        for start in range(0, count, BLOCK):
            x = _load_x(
                candidates_ptr, logits_ptr, edited_ptr, collected, edited, start, count, largest, inverse, BLOCK
            )
            weight = tl.exp(x) if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
            sums += tl.where(x[None, :] >= pivots[:, None], weight[None, :], 0.0)
        weights = tl.sum(sums, axis=1)
        best = tl.max(tl.where(weights >= target, lanes, 0), axis=0)
        weight_low = tl.sum(tl.where(lanes == best, weights, 0.0), axis=0)
        weight_high = tl.where(best < 7, tl.sum(tl.where(lanes == best + 1, weights, 0.0), axis=0), weight_high)
        high = tl.where(best < 7, tl.sum(tl.where(lanes == best + 1, pivots, 0.0), axis=0), high)
        low = tl.sum(tl.where(lanes == best, pivots, 0.0), axis=0)
        # below twice the least weight of one value, a single one is left in [low, high)
        least = 2.0 * tl.exp(low) if BY_MASS else 2.0 + 0.0 * low
        passes += 1
    return low


@triton.jit
def threshold_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    flags_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    chunk_max_ptr,
    pivot_counts_ptr,
    pivot_masses_ptr,
    candidates_ptr,
    thresholds_ptr,
    logits_stride,
    vocab_size,
    num_chunks,
    MAX_CANDIDATES: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [batch]; thresholds float32 [batch, 2]: the logit that x counts from, and the least x that is kept."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(b_row_ptr + i)
    flags = tl.load(flags_ptr + row)
    if _is_filtered(tl.load(row_flags_ptr + i), flags):
        top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
        at = i * num_chunks * _NUM_PIVOTS
        low, count, _, mass = _pick_pivot(
            pivot_counts_ptr + at,
            pivot_masses_ptr + at,
            top_k,
            top_p,
            min_p,
            num_chunks,
            vocab_size,
            BLOCK_C,
        )
        candidates = candidates_ptr + i * MAX_CANDIDATES
        line, edited_line, edited = logits_ptr + i * logits_stride, edited_ptr + i * vocab_size, is_edited(flags)
        inverse = 1.0 / tl.load(temperature_ptr + row)
        largest = _row_max(chunk_max_ptr + i * num_chunks, num_chunks, BLOCK_C)
        collected = count <= MAX_CANDIDATES
        count = tl.where(collected, count, vocab_size)
        floor = _FLOOR + 0.0 * low
        if min_p > 0.0:
            floor = tl.maximum(tl.log(min_p), _FLOOR)
        if (top_k > 0) & (top_k < vocab_size):
            kth = _search(
                candidates,
                line,
                edited_line,
                collected,
                edited,
                count,
                largest,
                inverse,
                top_k.to(tl.float32),
                low,
                False,
                BLOCK,
            )
            floor = tl.maximum(floor, kth)
        if top_p < 1.0:
            if (min_p > 0.0) | ((top_k > 0) & (top_k < vocab_size)):  # the mass that these left
                sums = tl.zeros([BLOCK], tl.float32)
                for start in range(0, count, BLOCK):
                    x = _load_x(candidates, line, edited_line, collected, edited, start, count, largest, inverse, BLOCK)
                    sums += tl.where(x >= floor, tl.exp(x), 0.0)
                mass = tl.sum(sums, axis=0)
            floor = _search(
                candidates,
                line,
                edited_line,
                collected,
                edited,
                count,
                largest,
                inverse,
                top_p * mass,
                tl.maximum(floor, low),
                True,
                BLOCK,
            )
        tl.store(thresholds_ptr + 2 * i, largest)
        tl.store(thresholds_ptr + 2 * i + 1, floor)
    else:
        tl.store(thresholds_ptr + 2 * i, 0.0)
        tl.store(thresholds_ptr + 2 * i + 1, float("-inf"))
