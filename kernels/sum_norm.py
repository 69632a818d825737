"""Norm of (sum of the ranks' parts) + residual, where the parts of the other ranks have been copied here.

No programmatic dependent launch: what comes before is a stream's wait for those copies, not a kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import warps_for


@triton.jit(do_not_specialize=["rank"])
def _sum_norm_kernel(
    x_ptr,
    parts_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    part_stride,
    part_row_stride,
    residual_stride,
    out_stride,
    hidden_size,
    rank,
    eps,
    SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    # int64: a part of 8192 tokens of hidden size 8192 ends at 2**26 elements, the last of eight at 2**29
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    for source in tl.static_range(SIZE):
        part = parts_ptr + source * part_stride + row * part_row_stride + cols
        total += tl.where(source == rank, x, tl.load(part, mask=mask & (source != rank), other=0.0).to(tl.float32))
    residual = residual_ptr + row * residual_stride + cols
    # rounded once, as every way of summing does
    y = total.to(dtype).to(tl.float32) + tl.load(residual, mask=mask, other=0.0).to(tl.float32)
    tl.store(residual, y.to(residual_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:
        y = tl.where(mask, y - tl.sum(y, axis=0) / hidden_size, 0.0)
    y *= tl.rsqrt(tl.sum(y * y, axis=0) / hidden_size + eps)
    y *= tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


def sum_norm(
    x: Tensor,
    parts: Tensor,
    rank: int,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm, or with a bias LayerNorm, of (sum of the ranks' parts) + residual.

    The sum is added in rank order in float32 and rounded to x's dtype.

    Args:
        x: [tokens, hidden], the part of `rank`.
        parts: [ranks, tokens, hidden], those of the others; that of `rank` is not read.
        residual: [tokens, hidden], becomes the sum in place.
        weight, bias: [hidden].
        out: [tokens, hidden], allocated when None; may be x.
    """
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    assert parts.shape[1:] == residual.shape == out.shape == x.shape and 0 <= rank < len(parts)
    assert parts.dtype == x.dtype and all(t.stride(-1) == 1 for t in (x, parts, residual, out))
    assert all(p is None or (p.shape == (hidden_size,) and p.stride(0) == 1) for p in (weight, bias))
    if num_tokens == 0:
        return out
    block_size = triton.next_power_of_2(hidden_size)
    _sum_norm_kernel[(num_tokens,)](
        x,
        parts,
        residual,
        weight,
        bias,
        out,
        x.stride(0),
        parts.stride(0),
        parts.stride(1),
        residual.stride(0),
        out.stride(0),
        hidden_size,
        rank,
        eps,
        SIZE=len(parts),
        HAS_BIAS=bias is not None,
        BLOCK_SIZE=block_size,
        num_warps=warps_for(block_size),
    )
    return out
