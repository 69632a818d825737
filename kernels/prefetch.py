"""Asks for memory before a kernel may touch what its predecessor makes."""

import triton
import triton.language as tl

# bytes of what one prefetch brings
LINE = tl.constexpr(128)


@triton.jit
def prefetch_l2(ptrs):
    """Brings the line of each pointer into the L2 cache; nothing waits for it.

    Between the start of a kernel and its `gdc_wait`, where weights and KV cache may be read ahead but activations not.
    Compiled for CUDA alone: the interpreter has no inline assembly.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [ptrs.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )
