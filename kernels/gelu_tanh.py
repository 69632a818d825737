"""GELU in its tanh form."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options

BLOCK_SIZE = 1024


@triton.jit
def _gelu_tanh_kernel(x_ptr, out_ptr, x_stride, out_stride, width, USE_PDL: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = cols < width
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    # 0.5 (1 + tanh(z)) = sigmoid(2 z)
    y = x / (1.0 + tl.exp(-2.0 * inner))
    tl.store(out_ptr + row * out_stride + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


def gelu_tanh(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) in float32.

    Args:
        x: [tokens, n].
        out: [tokens, n], allocated when None; may be x.
    """
    num_tokens, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    assert out.shape == x.shape and x.stride(1) == out.stride(1) == 1
    if num_tokens:
        _gelu_tanh_kernel[(num_tokens, triton.cdiv(width, BLOCK_SIZE))](
            x, out, x.stride(0), out.stride(0), width, BLOCK_SIZE=BLOCK_SIZE, num_warps=4, **pdl_options(x)
        )
    return out
