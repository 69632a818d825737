"""Writes the K and V of new tokens to their slots of the paged cache."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options

HEADS_PER_PROGRAM = 8


@triton.jit
def store_heads(
    x_ptr,
    cache_ptr,
    slot,
    heads,
    x_head_stride,
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    num_heads,
    block_size,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Copies some heads of one token from `x_ptr`, the token's first head, to `slot` (int64)."""
    dims = tl.arange(0, BLOCK_D)
    mask = (heads[:, None] < num_heads) & (dims[None, :] < HEAD_DIM)
    values = tl.load(x_ptr + heads[:, None] * x_head_stride + dims[None, :], mask=mask)
    target = cache_ptr + (slot // block_size) * cache_block_stride + (slot % block_size) * cache_slot_stride
    target += heads.to(tl.int64)[:, None] * cache_head_stride + dims[None, :]
    tl.store(target, values.to(cache_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _kv_store_kernel(
    k_ptr,
    v_ptr,
    slot_mapping_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    num_heads,
    block_size,
    HEAD_DIM: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slot_mapping_ptr + token)
    store_heads(
        k_ptr + token * k_stride,
        k_cache_ptr,
        slot,
        heads,
        k_head_stride,
        cache_block_stride,
        cache_head_stride,
        cache_slot_stride,
        num_heads,
        block_size,
        HEAD_DIM,
        BLOCK_D,
    )
    store_heads(
        v_ptr + token * v_stride,
        v_cache_ptr,
        slot,
        heads,
        v_head_stride,
        cache_block_stride,
        cache_head_stride,
        cache_slot_stride,
        num_heads,
        block_size,
        HEAD_DIM,
        BLOCK_D,
    )


def kv_store(k: Tensor, v: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """cache[slot // block_size, :, slot % block_size] = k or v of each token.

    Args:
        k, v: [tokens, kv_heads, head_dim].
        slot_mapping: int64 [tokens]; distinct but for padding, which writes slot 0.
        k_cache, v_cache: [blocks, kv_heads, block_size, head_dim], alike in strides.
    """
    num_tokens, num_heads, head_dim = k.shape
    assert k.shape == v.shape and k.stride(2) == v.stride(2) == k_cache.stride(3) == 1
    assert k_cache.stride() == v_cache.stride() and k_cache.shape[1::2] == (num_heads, head_dim)
    if num_tokens == 0:
        return
    _kv_store_kernel[(num_tokens, triton.cdiv(num_heads, HEADS_PER_PROGRAM))](
        k,
        v,
        slot_mapping,
        k_cache,
        v_cache,
        *k.stride()[:2],
        *v.stride()[:2],
        *k_cache.stride()[:3],
        num_heads,
        k_cache.shape[2],
        HEAD_DIM=head_dim,
        BLOCK_H=min(HEADS_PER_PROGRAM, triton.next_power_of_2(num_heads)),
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=4,
        **pdl_options(k),
    )
