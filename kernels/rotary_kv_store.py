"""Rotary embedding of q and k, with optional per-head RMSNorm before it, and the store of k and v, in one launch."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .kv_store import store_heads
from .launch import pdl_options

HEADS_PER_PROGRAM = 8


@triton.jit
def _rotate_heads(
    x_ptr,
    out_ptr,
    norm_ptr,
    cos,
    sin,
    heads,
    x_head_stride,
    out_head_stride,
    num_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COPY_REST: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Rotates dims [0, 2 * HALF) of some heads of one token; dims past them are normalised or copied."""
    dims, rest_dims = tl.arange(0, BLOCK_HALF), 2 * HALF + tl.arange(0, BLOCK_REST)
    inside = heads[:, None] < num_heads
    mask = inside & (dims[None, :] < HALF)
    rest_mask = inside & (rest_dims[None, :] < HEAD_DIM)
    first = heads[:, None] * x_head_stride + dims[None, :]
    rest_at = heads[:, None] * x_head_stride + rest_dims[None, :]
    a = tl.load(x_ptr + first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + first + HALF, mask=mask, other=0.0).to(tl.float32)
    if COPY_REST:
        rest = tl.load(x_ptr + rest_at, mask=rest_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        if COPY_REST:
            square += tl.sum(rest * rest, axis=1)
        rstd = tl.rsqrt(square / HEAD_DIM + eps)[:, None]
        a *= rstd * tl.load(norm_ptr + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
        b *= rstd * tl.load(norm_ptr + HALF + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
        if COPY_REST:
            rest *= rstd * tl.load(norm_ptr + rest_dims, mask=rest_dims < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
    out_first = out_ptr + heads.to(tl.int64)[:, None] * out_head_stride + dims[None, :]
    dtype = out_ptr.dtype.element_ty
    tl.store(out_first, (a * cos - b * sin).to(dtype), mask=mask)
    tl.store(out_first + HALF, (b * cos + a * sin).to(dtype), mask=mask)
    if COPY_REST:
        out_rest = out_ptr + heads.to(tl.int64)[:, None] * out_head_stride + rest_dims[None, :]
        tl.store(out_rest, rest.to(dtype), mask=rest_mask)


@triton.jit
def _rotary_kv_store_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    position_ids_ptr,
    slot_mapping_ptr,
    k_cache_ptr,
    v_cache_ptr,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    cos_stride,
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    num_q_heads,
    num_kv_heads,
    block_size,
    eps,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    num_q_parts = tl.cdiv(num_q_heads, BLOCK_H)
    dims = tl.arange(0, BLOCK_HALF)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    angle_at = tl.load(position_ids_ptr + token).to(tl.int64) * cos_stride + dims
    cos = tl.load(cos_ptr + angle_at, mask=dims < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle_at, mask=dims < HALF, other=0.0)[None, :]
    if part < num_q_parts:
        q_token = q_ptr + token * q_stride
        _rotate_heads(
            q_token,
            q_token,
            q_norm_ptr,
            cos,
            sin,
            part * BLOCK_H + tl.arange(0, BLOCK_H),
            q_head_stride,
            q_head_stride,
            num_q_heads,
            eps,
            HEAD_DIM,
            HALF,
            HAS_Q_NORM,
            HAS_Q_NORM and 2 * HALF < HEAD_DIM,  # in place: without a norm the rest stays as it is
            BLOCK_HALF,
            BLOCK_REST,
        )
    else:
        heads = (part - num_q_parts) * BLOCK_H + tl.arange(0, BLOCK_H)
        slot = tl.load(slot_mapping_ptr + token)
        slot_at = (slot // block_size) * cache_block_stride + (slot % block_size) * cache_slot_stride
        _rotate_heads(
            k_ptr + token * k_stride,
            k_cache_ptr + slot_at,
            k_norm_ptr,
            cos,
            sin,
            heads,
            k_head_stride,
            cache_head_stride,
            num_kv_heads,
            eps,
            HEAD_DIM,
            HALF,
            HAS_K_NORM,
            2 * HALF < HEAD_DIM,
            BLOCK_HALF,
            BLOCK_REST,
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
            num_kv_heads,
            block_size,
            HEAD_DIM,
            BLOCK_D,
        )


def rotary_kv_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotates q in place by its positions; stores rotated k, and v, in the cache. k itself stays as it was.

    Pairs are (i, i + rotary_dim / 2), as in Hugging Face's checkpoints; dims past rotary_dim pass through.

    Args:
        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim].
        cos, sin: float32 [positions, rotary_dim / 2], alike in strides.
        position_ids: int32 [tokens]; slot_mapping: int64 [tokens].
        k_cache, v_cache: [blocks, kv_heads, block_size, head_dim], alike in strides.
        q_norm, k_norm: RMSNorm weights [head_dim], applied with `eps` before the rotation.
    """
    num_tokens, num_q_heads, head_dim = q.shape
    num_kv_heads, half = k.shape[1], cos.shape[1]
    assert k.shape == v.shape == (num_tokens, num_kv_heads, head_dim) and 2 * half <= head_dim
    assert k_cache.stride() == v_cache.stride() and k_cache.shape[1::2] == (num_kv_heads, head_dim)
    assert cos.stride() == sin.stride() and cos.dtype == sin.dtype
    assert q.stride(2) == k.stride(2) == v.stride(2) == cos.stride(1) == k_cache.stride(3) == 1
    if num_tokens == 0:
        return
    block_h = min(HEADS_PER_PROGRAM, triton.next_power_of_2(num_q_heads))
    _rotary_kv_store_kernel[(num_tokens, triton.cdiv(num_q_heads, block_h) + triton.cdiv(num_kv_heads, block_h))](
        q,
        k,
        v,
        cos,
        sin,
        q_norm,
        k_norm,
        position_ids,
        slot_mapping,
        k_cache,
        v_cache,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        cos.stride(0),
        *k_cache.stride()[:3],
        num_q_heads,
        num_kv_heads,
        k_cache.shape[2],
        eps,
        HEAD_DIM=head_dim,
        HALF=half,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        BLOCK_H=block_h,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_HALF=triton.next_power_of_2(half),
        BLOCK_REST=triton.next_power_of_2(max(head_dim - 2 * half, 1)),
        num_warps=4,
        **pdl_options(q),
    )
