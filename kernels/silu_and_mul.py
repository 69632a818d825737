"""The gated activation silu(gate) * up."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options

BLOCK_SIZE = 1024


@triton.jit
def _silu_and_mul_kernel(x_ptr, out_ptr, x_stride, out_stride, width, USE_PDL: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = cols < width
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + width + cols, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * out_stride + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up in float32, silu(g) = g / (1 + exp(-g)).

    Args:
        x: [tokens, 2 * n], gate first.
        out: [tokens, n], allocated when None.
    """
    num_tokens, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_tokens, width) if out is None else out
    assert x.shape[1] == 2 * width and out.shape == (num_tokens, width) and x.stride(1) == out.stride(1) == 1
    if num_tokens:
        _silu_and_mul_kernel[(num_tokens, triton.cdiv(width, BLOCK_SIZE))](
            x, out, x.stride(0), out.stride(0), width, BLOCK_SIZE=BLOCK_SIZE, num_warps=4, **pdl_options(x)
        )
    return out
