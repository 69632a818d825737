"""Copies whole KV blocks between two pools, or inside one."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options

BLOCK_SIZE = 2048


@triton.jit
def _copy_blocks_kernel(
    src_ptr, dst_ptr, pairs_ptr, src_stride, dst_stride, width, USE_PDL: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    target = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    values = tl.load(src_ptr + source * src_stride + cols, mask=cols < width)
    tl.store(dst_ptr + target * dst_stride + cols, values, mask=cols < width)


def copy_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """dst[pairs[i, 1]] = src[pairs[i, 0]].

    Args:
        src, dst: [blocks, ...], one dtype, each block contiguous and of one size; pinned host memory works too.
        pairs: int32 [n, 2]; no block is both read and written.
    """
    width = src[0].numel()
    assert src.dtype == dst.dtype and src.shape[1:] == dst.shape[1:] and pairs.is_contiguous()
    assert src[0].is_contiguous() and dst[0].is_contiguous()
    if pairs.shape[0]:
        _copy_blocks_kernel[(pairs.shape[0], triton.cdiv(width, BLOCK_SIZE))](
            src,
            dst,
            pairs,
            src.stride(0),
            dst.stride(0),
            width,
            BLOCK_SIZE=BLOCK_SIZE,
            num_warps=8,
            **pdl_options(dst),
        )
