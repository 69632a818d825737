"""Rows of an embedding table, or of one rank's shard of it."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import pdl_options

BLOCK_SIZE = 1024


@triton.jit
def _embedding_kernel(
    input_ids_ptr,
    weight_ptr,
    out_ptr,
    weight_stride,
    out_stride,
    vocab_size,
    hidden_size,
    vocab_start,
    USE_PDL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(input_ids_ptr + token).to(tl.int64) - vocab_start
    inside = (row >= 0) & (row < vocab_size)
    values = tl.load(weight_ptr + row * weight_stride + cols, mask=mask & inside, other=0.0)
    tl.store(out_ptr + token * out_stride + cols, values, mask=mask)


def embedding(input_ids: Tensor, weight: Tensor, vocab_start: int = 0, *, out: Tensor | None = None) -> Tensor:
    """out[t] = weight[input_ids[t] - vocab_start]; ids outside this shard give zero rows.

    Args:
        input_ids: int32 or int64 [tokens].
        weight: [vocab of this shard, hidden].
        out: [tokens, hidden], allocated when None.
    """
    num_tokens, (vocab_size, hidden_size) = input_ids.shape[0], weight.shape
    out = weight.new_empty(num_tokens, hidden_size) if out is None else out
    assert out.shape == (num_tokens, hidden_size) and input_ids.stride(0) == weight.stride(1) == out.stride(1) == 1
    if num_tokens:
        _embedding_kernel[(num_tokens, triton.cdiv(hidden_size, BLOCK_SIZE))](
            input_ids,
            weight,
            out,
            weight.stride(0),
            out.stride(0),
            vocab_size,
            hidden_size,
            vocab_start,
            BLOCK_SIZE=BLOCK_SIZE,
            num_warps=4,
            **pdl_options(weight),
        )
    return out
