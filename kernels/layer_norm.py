"""LayerNorm of x + residual, one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options, warps_for


@triton.jit
def _layer_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    out_stride,
    hidden_size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = residual_ptr + row * residual_stride + cols
        x += tl.load(residual, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual, x.to(residual_ptr.dtype.element_ty), mask=mask)
    centred = tl.where(mask, x - tl.sum(x, axis=0) / hidden_size, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / hidden_size + eps)
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    y = (centred * rstd * weight + bias).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + cols, y, mask=mask)


def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, out: Tensor | None = None
) -> Tensor:
    """y = (t - mean(t)) / sqrt(var(t) + eps) * weight + bias with t = x + residual, in float32.

    Args:
        x: [tokens, hidden].
        residual: None, or [tokens, hidden], which becomes x + residual in place.
        weight, bias: [hidden].
        out: [tokens, hidden], allocated when None; may be x.
    """
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    assert weight.shape == bias.shape == (hidden_size,) and out.shape == x.shape
    assert x.stride(1) == out.stride(1) == weight.stride(0) == bias.stride(0) == 1
    assert residual is None or (residual.shape == x.shape and residual.stride(1) == 1)
    if num_tokens == 0:
        return out
    block_size = triton.next_power_of_2(hidden_size)
    _layer_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        bias,
        out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        hidden_size,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK_SIZE=block_size,
        num_warps=warps_for(block_size),
        **pdl_options(x),
    )
    return out
