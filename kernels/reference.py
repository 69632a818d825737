"""Every op in plain torch, on any device: what the CPU engine runs and what the Triton kernels are tested against.

Names and signatures are those of the kernels. Arithmetic is float32 whatever the tensors' dtype, but in `linear`. A
row's result does not depend on the rows beside it; `linear` and the attentions promise that only when `deterministic`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_all_reduce import all_reduce, all_reduce_norm
from .reference_attention import context_attention, token_attention
from .reference_sampling import sample
from .reference_step import prepare_step

__all__ = [
    "all_reduce",
    "all_reduce_norm",
    "context_attention",
    "copy_blocks",
    "embedding",
    "gelu_tanh",
    "kv_store",
    "layer_norm",
    "linear",
    "prepare_step",
    "rms_norm",
    "rotary_kv_store",
    "sample",
    "silu_and_mul",
    "sum_norm",
    "token_attention",
]

# Rows of one matrix product of the deterministic `linear`.
TILE_ROWS = 16


def _add_residual(x: Tensor, residual: Tensor | None) -> Tensor:
    """x + residual in float32; the rounded sum is left in `residual`."""
    if residual is None:
        return x.float()
    if residual.dtype is torch.float32:
        return residual.add_(x)
    total = x.float() + residual.float()
    residual.copy_(total)
    return total


def _write(y: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    return y.to(dtype) if out is None else out.copy_(y)


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """y = t / sqrt(mean(t^2) + eps) * weight with t = x + residual.

    Args:
        x: [tokens, hidden].
        residual: None, or [tokens, hidden], which becomes x + residual in place.
        weight: [hidden].
    """
    total = _add_residual(x, residual)
    return _write(F.rms_norm(total, weight.shape, weight.float(), eps), x.dtype, out)


def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, out: Tensor | None = None
) -> Tensor:
    """y = (t - mean(t)) / sqrt(var(t) + eps) * weight + bias with t = x + residual, as `rms_norm`."""
    total = _add_residual(x, residual)
    return _write(F.layer_norm(total, weight.shape, weight.float(), bias.float(), eps), x.dtype, out)


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

    The sum is added in rank order and rounded to x's dtype.

    Args:
        x: [tokens, hidden], the part of `rank`.
        parts: [ranks, tokens, hidden], those of the others; that of `rank` is not read.
        residual: [tokens, hidden], becomes the sum in place.
        weight, bias: [hidden].
    """
    total = torch.zeros_like(x, dtype=torch.float32)
    for source, part in enumerate(parts):
        total += x if source == rank else part
    if bias is None:
        return rms_norm(total.to(x.dtype), residual, weight, eps, out=out)
    return layer_norm(total.to(x.dtype), residual, weight, bias, eps, out=out)


def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """[tokens, 2 * n], gate first, to silu(gate) * up, [tokens, n]."""
    # The halves stay strided: in a loop over flat memory torch rounds the last few elements differently.
    gate, up = x.float().chunk(2, dim=-1)
    return _write(F.silu(gate) * up, x.dtype, out)


def gelu_tanh(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    x32 = x.float()
    inner = 0.7978845608028654 * (x32 + 0.044715 * (x32 * x32 * x32))
    return _write(0.5 * x32 * (1.0 + torch.tanh(inner)), x.dtype, out)


def embedding(input_ids: Tensor, weight: Tensor, vocab_start: int = 0, *, out: Tensor | None = None) -> Tensor:
    """Rows of `weight` [vocab of this shard, hidden]; ids outside [vocab_start, vocab_start + vocab) give zero rows."""
    local = input_ids - vocab_start
    outside = (local < 0) | (local >= weight.shape[0])
    rows = F.embedding(local.masked_fill(outside, 0), weight).masked_fill_(outside.unsqueeze(-1), 0.0)
    return rows if out is None else out.copy_(rows)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, deterministic: bool = False, out: Tensor | None = None
) -> Tensor:
    """x [tokens, in] times weight [out, in] transposed, plus bias [out].

    With `deterministic`, products of TILE_ROWS zero-padded rows: a matrix product of one shape gives a row the same
    bits at every place in the tile, while those of different shapes sum in different orders.
    """
    if not deterministic:
        y = F.linear(x, weight, bias)
        return y if out is None else out.copy_(y)
    num_tokens = x.shape[0]
    padded = F.pad(x, (0, 0, 0, -num_tokens % TILE_ROWS))
    y = torch.cat([F.linear(tile, weight, bias) for tile in padded.split(TILE_ROWS)])[:num_tokens]
    return y if out is None else out.copy_(y)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[-1]
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated_a, rotated_b = a * cos - b * sin, b * cos + a * sin
    x[..., :half] = rotated_a
    x[..., half : 2 * half] = rotated_b


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
    """Rotates q and k (in place) by their positions, then stores k and v in the cache.

    Pairs are (i, i + rotary_dim / 2), as in Hugging Face's checkpoints; dims past rotary_dim pass through.

    Args:
        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim].
        cos, sin: float32 [positions, rotary_dim / 2].
        position_ids: int32 [tokens]; slot_mapping: int64 [tokens].
        k_cache, v_cache: [blocks, kv_heads, block_size, head_dim].
        q_norm, k_norm: RMSNorm weights [head_dim], applied with `eps` before the rotation.
    """
    if q_norm is not None:
        rms_norm(q, None, q_norm, eps, out=q)
    if k_norm is not None:
        rms_norm(k, None, k_norm, eps, out=k)
    token_cos, token_sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)
    _rotate(q, token_cos, token_sin)
    _rotate(k, token_cos, token_sin)
    kv_store(k, v, slot_mapping, k_cache, v_cache)


def kv_store(k: Tensor, v: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Writes k and v [tokens, kv_heads, head_dim] to slots `block * block_size + offset`, int64 [tokens]."""
    block_size = k_cache.shape[2]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    k_cache[block, :, offset] = k
    v_cache[block, :, offset] = v


def copy_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """dst[pairs[i, 1]] = src[pairs[i, 0]] for int32 pairs [n, 2]; the first dimension of src and dst is blocks."""
    source, target = pairs.long().unbind(dim=1)
    dst[target] = src[source].to(dst.device)
