"""The part of `sample` that changes logits: logit bias, allowed ids, masked ids, penalties.

Rows that ask for none of it are left alone and read from the model's logits; the others are copied to float32 first.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import step_plan as sp

_SAMPLE = tl.constexpr(sp.ROW_SAMPLE)
_PENALTIES = tl.constexpr(sp.PENALTIES)
_LOGIT_BIAS = tl.constexpr(sp.LOGIT_BIAS)
_ALLOWED = tl.constexpr(sp.ALLOWED)
_MIN_TOKENS = tl.constexpr(sp.MIN_TOKENS)
_EDITS = tl.constexpr(sp.PENALTIES | sp.LOGIT_BIAS | sp.ALLOWED | sp.MIN_TOKENS)
_MAX_BIAS = tl.constexpr(sp.MAX_BIAS)
_MAX_MASKED = tl.constexpr(sp.MAX_MASKED)
_IN_PROMPT = tl.constexpr(1 << 30)  # of a word that counts a token; the low bits count it in the output


@triton.jit
def is_edited(flags):
    """Whether a row with these flags is read from the edited logits."""
    return (flags & _EDITS) != 0


@triton.jit
def load_logits(logits_ptr, edited_ptr, edited, at, mask):
    """Logits of one row as float32, -inf where masked off; the pointers are those of its first logit."""
    if edited:
        x = tl.load(edited_ptr + at, mask=mask, other=float("-inf"))
    else:
        x = tl.load(logits_ptr + at, mask=mask, other=float("-inf")).to(tl.float32)
    return x


@triton.jit
def copy_logits_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    flags_ptr,
    allowed_mask_ptr,
    logits_stride,
    mask_stride,
    vocab_size,
    num_chunks,
    USE_PDL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Some chunks of one row to float32, -inf where it is not allowed. Grid [batch, parts]."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(b_row_ptr + i).to(tl.int64)
    flags = tl.load(flags_ptr + row)
    if is_edited(flags) & ((tl.load(row_flags_ptr + i) & _SAMPLE) != 0):
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            mask = ids < vocab_size
            x = tl.load(logits_ptr + i * logits_stride + ids, mask=mask, other=0.0).to(tl.float32)
            if (flags & _ALLOWED) != 0:
                words = tl.load(allowed_mask_ptr + row * mask_stride + (ids >> 5), mask=mask, other=0)
                x = tl.where(((words >> (ids & 31)) & 1) != 0, x, float("-inf"))
            tl.store(edited_ptr + i * vocab_size + ids, x, mask=mask)


@triton.jit
def _penalise(
    x_ptr,
    counts_ptr,
    token_ids_ptr,
    prompt_len,
    seq_len,
    repetition,
    frequency,
    presence,
    BLOCK: tl.constexpr,
):
    """Counts the known ids in `counts_ptr` [vocab], all zeros, then takes each count out again and applies it once."""
    for start in range(0, seq_len, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids = tl.load(token_ids_ptr + at, mask=at < seq_len, other=0)
        prompt = tl.full([BLOCK], _IN_PROMPT, tl.int32)
        tl.atomic_or(counts_ptr + ids, prompt, mask=at < tl.minimum(prompt_len, seq_len), sem="relaxed")
        output = (at >= prompt_len) & (at < seq_len)
        tl.atomic_add(counts_ptr + ids, tl.full([BLOCK], 1, tl.int32), mask=output, sem="relaxed")
    tl.debug_barrier()
    for start in range(0, seq_len, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids = tl.load(token_ids_ptr + at, mask=at < seq_len, other=0)
        word = tl.atomic_xchg(counts_ptr + ids, tl.zeros([BLOCK], tl.int32), mask=at < seq_len, sem="relaxed")
        first = (at < seq_len) & (word != 0)  # of equal ids one thread receives the count
        x = tl.load(x_ptr + ids, mask=first, other=0.0)
        count = (word & (_IN_PROMPT - 1)).to(tl.float32)
        x = tl.where(x > 0, x / repetition, x * repetition)
        x = x - frequency * count - tl.where(count > 0, presence, 0.0)
        tl.store(x_ptr + ids, x, mask=first)


@triton.jit
def edit_logits_kernel(
    edited_ptr,
    counts_ptr,
    b_row_ptr,
    row_flags_ptr,
    b_seq_len_ptr,
    flags_ptr,
    token_ids_ptr,
    prompt_len_ptr,
    min_tokens_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    num_bias_ptr,
    masked_ids_ptr,
    num_masked_ptr,
    presence_penalty_ptr,
    frequency_penalty_ptr,
    repetition_penalty_ptr,
    token_ids_stride,
    vocab_size,
    USE_PDL: tl.constexpr,
    BLOCK_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logit bias, then ids masked below min_tokens, then penalties, on one row. Grid [batch]."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(b_row_ptr + i).to(tl.int64)
    flags = tl.load(flags_ptr + row)
    flags = tl.where((tl.load(row_flags_ptr + i) & _SAMPLE) != 0, flags, 0)
    x_ptr = edited_ptr + i * vocab_size
    seq_len = tl.load(b_seq_len_ptr + i)
    prompt_len = tl.load(prompt_len_ptr + row)
    if (flags & _LOGIT_BIAS) != 0:
        at = tl.arange(0, BLOCK_BIAS)
        mask = at < tl.load(num_bias_ptr + row)
        ids = tl.load(bias_ids_ptr + row * _MAX_BIAS + at, mask=mask, other=0)
        bias = tl.load(bias_values_ptr + row * _MAX_BIAS + at, mask=mask, other=0.0)
        tl.store(x_ptr + ids, tl.load(x_ptr + ids, mask=mask, other=0.0) + bias, mask=mask)
        tl.debug_barrier()  # the same id may come in the lists below
    if ((flags & _MIN_TOKENS) != 0) & (seq_len - prompt_len < tl.load(min_tokens_ptr + row)):
        at = tl.arange(0, _MAX_MASKED)
        mask = at < tl.load(num_masked_ptr + row)
        ids = tl.load(masked_ids_ptr + row * _MAX_MASKED + at, mask=mask, other=0)
        tl.store(x_ptr + ids, tl.full([_MAX_MASKED], float("-inf"), tl.float32), mask=mask)
        tl.debug_barrier()
    if (flags & _PENALTIES) != 0:
        _penalise(
            x_ptr,
            counts_ptr + i * vocab_size,
            token_ids_ptr + row * token_ids_stride,
            prompt_len,
            seq_len,
            tl.load(repetition_penalty_ptr + row),
            tl.load(frequency_penalty_ptr + row),
            tl.load(presence_penalty_ptr + row),
            BLOCK,
        )
