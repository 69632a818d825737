"""Sum of x over the ranks, plus residual, normalised: one kernel over memory that the ranks write into one another's.

One-shot: every rank pushes its rows to all others, and all add the same parts in the same order. Two-shot: a row's
owner alone adds its parts and pushes the sum; fewer bytes where there are more than two ranks, one hop more. How parts
arrive is told in peer_memory.py: to mark what has not arrived by a value goes back to the "Lamport" all-reduce of
TensorRT-LLM, which takes -0.0.

Program p of a rank waits for program p of the others alone, and programs start in order: where not all of them fit on a
device at once, those that wait are still the first ones everywhere, so that the lowest can always end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options, warps_for
from .peer_memory import BITS, PeerMemory
from .peer_memory import EMPTY as _EMPTY

EMPTY = tl.constexpr(_EMPTY)
# A look at the host's memory takes microseconds: one every so many looks at the device's.
SPINS_PER_LOOK = tl.constexpr(256)
NONE, RMS, LAYER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_TL_BITS = {torch.int16: tl.int16, torch.int32: tl.int32}


@triton.jit
def _part(memory, half, source, row, num_rows, row_bytes, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Where rank `source` writes its row into the memory at that address."""
    offset = ((half * SIZE + source).to(tl.int64) * num_rows + row) * row_bytes
    return tl.multiple_of((memory + offset).to(tl.pointer_type(BITS)), 16)


@triton.jit
def _filled(bits):
    """The elements, none of which looks as if it had not arrived."""
    return tl.where(bits == EMPTY, EMPTY - 1, bits)


@triton.jit
def _is_expected(source, rank, owner, adds):
    """Whether `source` writes to this rank: who adds gets a part of every other rank, who does not the owner's sum."""
    return (adds & (source != rank)) | ((adds == 0) & (source == owner))


@triton.jit(do_not_specialize=["rank"])
def _all_reduce_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    addresses_ptr,
    turns_ptr,
    x_stride,
    residual_stride,
    out_stride,
    num_rows,
    row_bytes,
    hidden_size,
    rank,
    eps,
    SIZE: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    USE_PDL: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # no kernel writes the parameters and the addresses
    if NORM != NONE:
        weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    if NORM == LAYER:
        bias = tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    memory = tl.load(addresses_ptr + rank)
    abort_ptr = tl.load(addresses_ptr + SIZE).to(tl.pointer_type(tl.int32))
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    half = tl.load(turns_ptr + row)
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0)
    own = _filled(x.to(BITS, bitcast=True))

    owner = (row % SIZE).to(tl.int32)
    for i in tl.static_range(1, SIZE):
        peer = (rank + i) % SIZE
        part = _part(tl.load(addresses_ptr + peer), half, rank, row, num_rows, row_bytes, SIZE, BITS)
        tl.store(part + cols, own, mask=mask & (peer == owner) if TWO_SHOT else mask)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0).to(tl.float32)

    adds = (owner == rank) | (not TWO_SHOT)
    kept = tl.where(adds, own, tl.zeros_like(own))
    total = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    num_spins = 0
    num_missing = 1
    while num_missing > 0:
        total = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
        missing = tl.zeros([BLOCK_SIZE], dtype=tl.int32)
        for source in tl.static_range(SIZE):
            expected = _is_expected(source, rank, owner, adds)
            part = _part(memory, half, source, row, num_rows, row_bytes, SIZE, BITS)
            bits = tl.load(part + cols, mask=mask & expected, other=kept, volatile=True)
            missing |= (bits == EMPTY).to(tl.int32)
            total += bits.to(dtype, bitcast=True).to(tl.float32)
        num_missing = tl.max(missing, axis=0)
        num_spins += 1
        if num_spins % SPINS_PER_LOOK == 0:
            failed = tl.load(abort_ptr, volatile=True)
            num_missing = tl.where(failed != 0, 0, num_missing)

    # rounded once, as the all-reduces of other sizes do: what follows has the same bits whatever the size
    rounded = total.to(dtype)
    if TWO_SHOT:
        summed = _filled(rounded.to(BITS, bitcast=True))
        for i in tl.static_range(1, SIZE):
            peer = (rank + i) % SIZE
            part = _part(tl.load(addresses_ptr + peer), half, rank, row, num_rows, row_bytes, SIZE, BITS)
            tl.store(part + cols, summed, mask=mask & adds)
    y = rounded.to(tl.float32)
    y = tl.where(y == 0.0, 0.0, y)  # not -0.0, which the owner's sum may be and what comes of adding it to 0 is not
    if HAS_RESIDUAL:
        y += residual
        tl.store(residual_ptr + row * residual_stride + cols, y.to(residual_ptr.dtype.element_ty), mask=mask)
    if NORM == LAYER:
        y = tl.where(mask, y - tl.sum(y, axis=0) / hidden_size, 0.0)
    if NORM != NONE:
        y = y * tl.rsqrt(tl.sum(y * y, axis=0) / hidden_size + eps) * weight
    if NORM == LAYER:
        y += bias
    tl.store(out_ptr + row * out_stride + cols, y.to(out_ptr.dtype.element_ty), mask=mask)

    # all threads have read all parts: `num_missing` depends on them
    for source in tl.static_range(SIZE):
        expected = _is_expected(source, rank, owner, adds)
        part = _part(memory, half, source, row, num_rows, row_bytes, SIZE, BITS)
        tl.store(part + cols, tl.full([BLOCK_SIZE], EMPTY, dtype=BITS), mask=mask & expected)
    tl.store(turns_ptr + row, 1 - half)


def launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    peers: PeerMemory,
    two_shot: bool,
    out: Tensor | None,
) -> Tensor:
    """The kernel with or without residual, norm and bias; see `all_reduce_norm`."""
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    assert peers.holds(x) and out.shape == x.shape and out.stride(1) == 1
    assert residual is None or (residual.shape == x.shape and residual.stride(1) == 1)
    assert all(p is None or (p.shape == (hidden_size,) and p.stride(0) == 1) for p in (weight, bias))
    if num_tokens == 0:
        return out
    block_size = triton.next_power_of_2(hidden_size)
    _all_reduce_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        bias,
        out,
        peers.addresses,
        peers.turns,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        peers.num_rows,
        peers.row_bytes,
        hidden_size,
        peers.rank,
        eps,
        SIZE=peers.size,
        TWO_SHOT=two_shot,
        NORM=(NONE if weight is None else RMS if bias is None else LAYER).value,
        HAS_RESIDUAL=residual is not None,
        BITS=_TL_BITS[BITS[x.dtype]],
        BLOCK_SIZE=block_size,
        num_warps=warps_for(block_size),
        **pdl_options(x),
    )
    return out


def all_reduce_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    peers: PeerMemory,
    *,
    two_shot: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm, or with a bias LayerNorm, of (sum of x over the ranks) + residual.

    The sum is added in rank order in float32 and rounded to x's dtype: the same bits on every rank, whichever way it
    goes. Every rank makes the same calls; a call waits on the device until the others' parts are there, or the group
    has failed and its result means nothing.

    Args:
        x: [tokens, hidden], at most what `peers` holds.
        residual: [tokens, hidden], becomes the sum in place.
        weight, bias: [hidden].
        two_shot: the sums are shared out among the ranks.
        out: [tokens, hidden], allocated when None; may be x.
    """
    return launch(x, residual, weight, bias, eps, peers, two_shot, out)
