"""Applies a StepPlan's changes to the row state, then writes the step's inputs, in two launches of fixed grids.

Counts and offsets are read from the plan on the device, so that both launches can be part of a captured graph.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import step_plan as sp
from .launch import pdl_options
from .step_state import RowState, StepInputs

NUM_BLOCK_PROGRAMS = 32  # that write new_blocks
BLOCK_SIZE = 1024

_NUM_ROWS = tl.constexpr(sp.NUM_ROWS)
_NUM_DECODE_ROWS = tl.constexpr(sp.NUM_DECODE_ROWS)
_NUM_TOKENS = tl.constexpr(sp.NUM_TOKENS)
_ROWS = tl.constexpr(sp.ROWS)
_TOKENS = tl.constexpr(sp.TOKENS)
_NEW_BLOCKS = tl.constexpr(sp.NEW_BLOCKS)
_NEW_ROWS = tl.constexpr(sp.NEW_ROWS)
_ROW_WORDS = tl.constexpr(sp.ROW_WORDS)
_NEW_BLOCK_WORDS = tl.constexpr(sp.NEW_BLOCK_WORDS)
_NEW_ROW_WORDS = tl.constexpr(sp.NEW_ROW_WORDS)
_ALLOWED = tl.constexpr(sp.ALLOWED)
_FLAGS = tl.constexpr(sp.REC_FLAGS)
_TEMPERATURE = tl.constexpr(sp.REC_TEMPERATURE)
_TOP_P = tl.constexpr(sp.REC_TOP_P)
_TOP_K = tl.constexpr(sp.REC_TOP_K)
_MIN_P = tl.constexpr(sp.REC_MIN_P)
_PRESENCE_PENALTY = tl.constexpr(sp.REC_PRESENCE_PENALTY)
_FREQUENCY_PENALTY = tl.constexpr(sp.REC_FREQUENCY_PENALTY)
_REPETITION_PENALTY = tl.constexpr(sp.REC_REPETITION_PENALTY)
_SEED = tl.constexpr(sp.REC_SEED)
_PROMPT_LEN = tl.constexpr(sp.REC_PROMPT_LEN)
_MIN_TOKENS = tl.constexpr(sp.REC_MIN_TOKENS)
_NUM_LOGPROBS = tl.constexpr(sp.REC_NUM_LOGPROBS)
_SCORE_START = tl.constexpr(sp.REC_SCORE_START)
_KNOWN_IDS = tl.constexpr(sp.REC_KNOWN_IDS)
_LOGIT_BIAS = tl.constexpr(sp.REC_LOGIT_BIAS)
_ALLOWED_IDS = tl.constexpr(sp.REC_ALLOWED_IDS)
_MASKED_IDS = tl.constexpr(sp.REC_MASKED_IDS)
_MAX_BIAS = tl.constexpr(sp.MAX_BIAS)
_MAX_MASKED = tl.constexpr(sp.MAX_MASKED)


@triton.jit
def _copy_word(record_ptr, word: tl.constexpr, out_ptr, row):
    value = tl.load(record_ptr + word)
    tl.store(out_ptr + row, value.to(out_ptr.dtype.element_ty, bitcast=True))


@triton.jit
def _copy_list(plan_ptr, record_ptr, pair: tl.constexpr, out_ptr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Copies every STEP-th word of a list whose count is in groups of STEP; returns the count."""
    source = plan_ptr + tl.load(record_ptr + pair)
    count = tl.load(record_ptr + pair + 1)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(source + at * STEP, mask=at < count)
        tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty, bitcast=True), mask=at < count)
    return count


@triton.jit
def _write_allowed_mask(plan_ptr, record_ptr, mask_ptr, num_words, BLOCK: tl.constexpr):
    limited = (tl.load(record_ptr + _FLAGS) & _ALLOWED) != 0
    for start in range(0, num_words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(mask_ptr + at, tl.where(limited, 0, -1) + tl.zeros_like(at), mask=at < num_words)
    if limited:
        tl.debug_barrier()  # the zeros before the bits
        source = plan_ptr + tl.load(record_ptr + _ALLOWED_IDS)
        count = tl.load(record_ptr + _ALLOWED_IDS + 1)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            ids = tl.load(source + at, mask=at < count, other=0)
            bits = tl.full([BLOCK], 1, tl.int32) << (ids & 31)
            tl.atomic_or(mask_ptr + (ids >> 5), bits, mask=at < count, sem="relaxed")


@triton.jit
def _write_new_row(
    plan_ptr,
    record_ptr,
    flags_ptr,
    top_k_ptr,
    prompt_len_ptr,
    min_tokens_ptr,
    num_logprobs_ptr,
    score_start_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    presence_penalty_ptr,
    frequency_penalty_ptr,
    repetition_penalty_ptr,
    seed_ptr,
    token_ids_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    num_bias_ptr,
    masked_ids_ptr,
    num_masked_ptr,
    allowed_mask_ptr,
    token_ids_stride,
    num_mask_words,
    BLOCK: tl.constexpr,
):
    row = tl.load(record_ptr).to(tl.int64)
    _copy_word(record_ptr, _FLAGS, flags_ptr, row)
    _copy_word(record_ptr, _TOP_K, top_k_ptr, row)
    _copy_word(record_ptr, _PROMPT_LEN, prompt_len_ptr, row)
    _copy_word(record_ptr, _MIN_TOKENS, min_tokens_ptr, row)
    _copy_word(record_ptr, _NUM_LOGPROBS, num_logprobs_ptr, row)
    _copy_word(record_ptr, _SCORE_START, score_start_ptr, row)
    _copy_word(record_ptr, _TEMPERATURE, temperature_ptr, row)
    _copy_word(record_ptr, _TOP_P, top_p_ptr, row)
    _copy_word(record_ptr, _MIN_P, min_p_ptr, row)
    _copy_word(record_ptr, _PRESENCE_PENALTY, presence_penalty_ptr, row)
    _copy_word(record_ptr, _FREQUENCY_PENALTY, frequency_penalty_ptr, row)
    _copy_word(record_ptr, _REPETITION_PENALTY, repetition_penalty_ptr, row)
    low = tl.load(record_ptr + _SEED).to(tl.int64) & 0xFFFFFFFF
    high = tl.load(record_ptr + _SEED + 1).to(tl.int64) << 32
    tl.store(seed_ptr + row, low | high)
    _copy_list(plan_ptr, record_ptr, _KNOWN_IDS, token_ids_ptr + row * token_ids_stride, 1, BLOCK)
    num_bias = _copy_list(plan_ptr, record_ptr, _LOGIT_BIAS, bias_ids_ptr + row * _MAX_BIAS, 2, BLOCK)
    _copy_list(plan_ptr + 1, record_ptr, _LOGIT_BIAS, bias_values_ptr + row * _MAX_BIAS, 2, BLOCK)
    tl.store(num_bias_ptr + row, num_bias)
    num_masked = _copy_list(plan_ptr, record_ptr, _MASKED_IDS, masked_ids_ptr + row * _MAX_MASKED, 1, BLOCK)
    tl.store(num_masked_ptr + row, num_masked)
    _write_allowed_mask(plan_ptr, record_ptr, allowed_mask_ptr + row * num_mask_words, num_mask_words, BLOCK)


@triton.jit
def _apply_changes_kernel(
    plan_ptr,
    block_table_ptr,
    flags_ptr,
    top_k_ptr,
    prompt_len_ptr,
    min_tokens_ptr,
    num_logprobs_ptr,
    score_start_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    presence_penalty_ptr,
    frequency_penalty_ptr,
    repetition_penalty_ptr,
    seed_ptr,
    token_ids_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    num_bias_ptr,
    masked_ids_ptr,
    num_masked_ptr,
    allowed_mask_ptr,
    block_table_stride,
    token_ids_stride,
    num_mask_words,
    NUM_BLOCK_PROGRAMS: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    if program < NUM_BLOCK_PROGRAMS:
        entries = plan_ptr + tl.load(plan_ptr + _NEW_BLOCKS)
        count = tl.load(plan_ptr + _NEW_BLOCKS + 1)
        for start in range(program * BLOCK, count, NUM_BLOCK_PROGRAMS * BLOCK):
            at = start + tl.arange(0, BLOCK)
            entry = entries + at * _NEW_BLOCK_WORDS
            row = tl.load(entry, mask=at < count, other=0).to(tl.int64)
            index = tl.load(entry + 1, mask=at < count, other=0)
            block = tl.load(entry + 2, mask=at < count, other=0)
            tl.store(block_table_ptr + row * block_table_stride + index, block, mask=at < count)
    elif program - NUM_BLOCK_PROGRAMS < tl.load(plan_ptr + _NEW_ROWS + 1):
        record = tl.load(plan_ptr + _NEW_ROWS) + (program - NUM_BLOCK_PROGRAMS) * _NEW_ROW_WORDS
        _write_new_row(
            plan_ptr,
            plan_ptr + record,
            flags_ptr,
            top_k_ptr,
            prompt_len_ptr,
            min_tokens_ptr,
            num_logprobs_ptr,
            score_start_ptr,
            temperature_ptr,
            top_p_ptr,
            min_p_ptr,
            presence_penalty_ptr,
            frequency_penalty_ptr,
            repetition_penalty_ptr,
            seed_ptr,
            token_ids_ptr,
            bias_ids_ptr,
            bias_values_ptr,
            num_bias_ptr,
            masked_ids_ptr,
            num_masked_ptr,
            allowed_mask_ptr,
            token_ids_stride,
            num_mask_words,
            BLOCK,
        )


@triton.jit
def _write_tokens(
    plan_ptr,
    last_token_ptr,
    table_ptr,
    input_ids_ptr,
    position_ids_ptr,
    slot_mapping_ptr,
    index,
    row,
    start,
    num_computed,
    num_scheduled,
    KV_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Ids, positions and slots of one row's new tokens; `table_ptr` is its block table."""
    num_decode = tl.load(plan_ptr + _NUM_DECODE_ROWS)
    host_ids = plan_ptr + tl.load(plan_ptr + _TOKENS) + start - num_decode
    for first in range(0, num_scheduled, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < num_scheduled
        # decode rows come first, one token each; `tokens` holds the ids of all others in row order
        if index < num_decode:
            ids = tl.load(last_token_ptr + row) + tl.zeros_like(at)
        else:
            ids = tl.load(host_ids + at, mask=mask, other=0)
        position = num_computed + at
        block = tl.load(table_ptr + position // KV_BLOCK, mask=mask, other=0).to(tl.int64)
        tl.store(input_ids_ptr + start + at, ids, mask=mask)
        tl.store(position_ids_ptr + start + at, position, mask=mask)
        tl.store(slot_mapping_ptr + start + at, block * KV_BLOCK + position % KV_BLOCK, mask=mask)


@triton.jit
def _write_inputs_kernel(
    plan_ptr,
    block_table_ptr,
    last_token_ptr,
    input_ids_ptr,
    position_ids_ptr,
    slot_mapping_ptr,
    b_row_ptr,
    b_start_loc_ptr,
    b_seq_len_ptr,
    row_flags_ptr,
    block_table_stride,
    max_rows,
    max_tokens,
    KV_BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    num_rows = tl.load(plan_ptr + _NUM_ROWS)
    num_tokens = tl.load(plan_ptr + _NUM_TOKENS)
    if program >= max_rows:
        at = (program - max_rows) * BLOCK + tl.arange(0, BLOCK)
        padding = (at >= num_tokens) & (at < max_tokens)
        tl.store(input_ids_ptr + at, tl.zeros([BLOCK], tl.int32), mask=padding)
        tl.store(position_ids_ptr + at, tl.zeros([BLOCK], tl.int32), mask=padding)
        tl.store(slot_mapping_ptr + at, tl.zeros([BLOCK], tl.int64), mask=padding)
    elif program >= num_rows:
        tl.store(b_row_ptr + program, max_rows - 1)
        tl.store(b_seq_len_ptr + program, 0)
        tl.store(row_flags_ptr + program, 0)
        tl.store(b_start_loc_ptr + program + 1, num_tokens)
    else:
        entries = plan_ptr + tl.load(plan_ptr + _ROWS)
        before = tl.arange(0, BLOCK_R)
        start = tl.sum(tl.load(entries + before * _ROW_WORDS + 2, mask=before < program, other=0), axis=0)
        row = tl.load(entries + program * _ROW_WORDS)
        num_computed = tl.load(entries + program * _ROW_WORDS + 1)
        num_scheduled = tl.load(entries + program * _ROW_WORDS + 2)
        tl.store(b_row_ptr + program, row)
        tl.store(b_seq_len_ptr + program, num_computed + num_scheduled)
        tl.store(row_flags_ptr + program, tl.load(entries + program * _ROW_WORDS + 3))
        tl.store(b_start_loc_ptr + program + 1, start + num_scheduled)
        _write_tokens(
            plan_ptr,
            last_token_ptr,
            block_table_ptr + row.to(tl.int64) * block_table_stride,
            input_ids_ptr,
            position_ids_ptr,
            slot_mapping_ptr,
            program,
            row,
            start,
            num_computed,
            num_scheduled,
            KV_BLOCK,
            BLOCK,
        )
    if program == 0:
        tl.store(b_start_loc_ptr, 0)


def prepare_step(plan: Tensor, rows: RowState, inputs: StepInputs) -> None:
    """Applies the plan's new rows and blocks to `rows`, then writes `inputs`.

    Args:
        plan: int32 [words], a StepPlan; on the device of `rows` and `inputs`.
        rows: updated in place; `last_token` of decode rows is read.
        inputs: overwritten whole, padding included.
    """
    max_rows, max_tokens = rows.flags.shape[0], inputs.input_ids.shape[0]
    _apply_changes_kernel[(NUM_BLOCK_PROGRAMS + max_rows,)](
        plan,
        rows.block_table,
        rows.flags,
        rows.top_k,
        rows.prompt_len,
        rows.min_tokens,
        rows.num_logprobs,
        rows.score_start,
        rows.temperature,
        rows.top_p,
        rows.min_p,
        rows.presence_penalty,
        rows.frequency_penalty,
        rows.repetition_penalty,
        rows.seed,
        rows.token_ids,
        rows.bias_ids,
        rows.bias_values,
        rows.num_bias,
        rows.masked_ids,
        rows.num_masked,
        rows.allowed_mask,
        rows.block_table.stride(0),
        rows.token_ids.stride(0),
        rows.allowed_mask.shape[1],
        NUM_BLOCK_PROGRAMS=NUM_BLOCK_PROGRAMS,
        BLOCK=BLOCK_SIZE,
        num_warps=4,
        **pdl_options(plan),
    )
    _write_inputs_kernel[(max_rows + triton.cdiv(max_tokens, BLOCK_SIZE),)](
        plan,
        rows.block_table,
        rows.last_token,
        inputs.input_ids,
        inputs.position_ids,
        inputs.slot_mapping,
        inputs.b_row,
        inputs.b_start_loc,
        inputs.b_seq_len,
        inputs.row_flags,
        rows.block_table.stride(0),
        max_rows,
        max_tokens,
        KV_BLOCK=rows.block_size,
        BLOCK_R=triton.next_power_of_2(max_rows),
        BLOCK=BLOCK_SIZE,
        num_warps=4,
        **pdl_options(plan),
    )
