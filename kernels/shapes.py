"""Every op on the meta device: allocates what the Triton op of that name returns, and computes nothing.

A model run on meta tensors therefore allocates like one on a GPU, which is how a step's memory is planned without one.
"""

from typing import Any

import torch
from torch import Tensor


def _like(x: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    return _like(x, out)


def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, out: Tensor | None = None
) -> Tensor:
    return _like(x, out)


def all_reduce_norm(x: Tensor, *args: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    return _like(x, out)


all_reduce = sum_norm = all_reduce_norm


def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2) if out is None else out


def gelu_tanh(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    return _like(x, out)


def embedding(input_ids: Tensor, weight: Tensor, vocab_start: int = 0, *, out: Tensor | None = None) -> Tensor:
    return weight.new_empty(input_ids.shape[0], weight.shape[1]) if out is None else out


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, deterministic: bool = False, out: Tensor | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0]) if out is None else out


def context_attention(q: Tensor, *args: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    return _like(q, out)


token_attention = context_attention


def _nothing(*args: Any, **options: Any) -> None:
    """Ops that write into what they are given."""


rotary_kv_store = kv_store = copy_blocks = prepare_step = sample = _nothing
