"""`prepare_step` in plain numpy over the tensors' memory: a step's changes applied, its inputs written."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch

from . import step_plan as sp
from .step_state import RowState, StepInputs

Words = npt.NDArray[np.int32]

_INT_WORDS = {
    "flags": sp.REC_FLAGS,
    "top_k": sp.REC_TOP_K,
    "prompt_len": sp.REC_PROMPT_LEN,
    "min_tokens": sp.REC_MIN_TOKENS,
    "num_logprobs": sp.REC_NUM_LOGPROBS,
    "score_start": sp.REC_SCORE_START,
}
_FLOAT_WORDS = {
    "temperature": sp.REC_TEMPERATURE,
    "top_p": sp.REC_TOP_P,
    "min_p": sp.REC_MIN_P,
    "presence_penalty": sp.REC_PRESENCE_PENALTY,
    "frequency_penalty": sp.REC_FREQUENCY_PENALTY,
    "repetition_penalty": sp.REC_REPETITION_PENALTY,
}


def prepare_step(plan: torch.Tensor, rows: RowState, inputs: StepInputs) -> None:
    """Applies the plan's new rows and blocks to `rows`, then writes `inputs`.

    Args:
        plan: int32 [words], a StepPlan; on the device of `rows` and `inputs`.
        rows: updated in place; `last_token` of decode rows is read.
        inputs: overwritten whole, padding included.
    """
    if plan.device.type != "cpu":
        _prepare_on_host(plan, rows, inputs)
        return
    words = plan.numpy()
    _write_new_rows(words, rows.views)
    blocks = _section(words, sp.NEW_BLOCKS, sp.NEW_BLOCK_WORDS)
    rows.views.block_table[blocks[:, 0], blocks[:, 1]] = blocks[:, 2]
    _write_inputs(words, rows, inputs.views)


def _prepare_on_host(plan: torch.Tensor, rows: RowState, inputs: StepInputs) -> None:
    host_rows, host_inputs = rows.to("cpu"), inputs.to("cpu")
    prepare_step(plan.cpu(), host_rows, host_inputs)
    rows.copy_from(host_rows)
    inputs.copy_from(host_inputs)


def _section(words: Words, pair: int, entry_words: int) -> Words:
    offset, count = words[pair : pair + 2].tolist()
    return words[offset : offset + count * entry_words].reshape(count, entry_words)


def _list(words: Words, record: Words, pair: int, entry_words: int = 1) -> Words:
    offset, count = record[pair : pair + 2].tolist()
    return words[offset : offset + count * entry_words]


def _write_new_rows(words: Words, state: SimpleNamespace) -> None:
    records = _section(words, sp.NEW_ROWS, sp.NEW_ROW_WORDS)
    if not len(records):
        return
    row = records[:, sp.REC_ROW]
    for name, word in _INT_WORDS.items():
        getattr(state, name)[row] = records[:, word]
    for name, word in _FLOAT_WORDS.items():
        getattr(state, name)[row] = np.ascontiguousarray(records[:, word]).view(np.float32)
    state.seed[row] = np.ascontiguousarray(records[:, sp.REC_SEED : sp.REC_SEED + 2]).view(np.int64)[:, 0]
    for record in records:
        _write_lists(words, record, state)


def _write_lists(words: Words, record: Words, state: SimpleNamespace) -> None:
    row = record[sp.REC_ROW]
    known = _list(words, record, sp.REC_KNOWN_IDS)
    state.token_ids[row, : len(known)] = known
    bias = _list(words, record, sp.REC_LOGIT_BIAS, 2).reshape(-1, 2)
    state.bias_ids[row, : len(bias)] = bias[:, 0]
    state.bias_values[row, : len(bias)] = np.ascontiguousarray(bias[:, 1]).view(np.float32)
    state.num_bias[row] = len(bias)
    masked = _list(words, record, sp.REC_MASKED_IDS)
    state.masked_ids[row, : len(masked)] = masked
    state.num_masked[row] = len(masked)
    if not record[sp.REC_FLAGS] & sp.ALLOWED:
        state.allowed_mask[row] = -1
        return
    allowed = _list(words, record, sp.REC_ALLOWED_IDS).astype(np.uint32)
    state.allowed_mask[row] = 0
    np.bitwise_or.at(state.allowed_mask[row].view(np.uint32), allowed >> 5, np.uint32(1) << (allowed & 31))


def _write_inputs(words: Words, rows: RowState, inputs: SimpleNamespace) -> None:
    row, num_computed, num_scheduled, flags = _section(words, sp.ROWS, sp.ROW_WORDS).T
    num_rows, num_decode, num_tokens = len(row), int(words[sp.NUM_DECODE_ROWS]), int(words[sp.NUM_TOKENS])

    inputs.b_row[:num_rows] = row
    inputs.b_row[num_rows:] = len(rows.views.flags) - 1
    inputs.b_seq_len[:num_rows] = num_computed + num_scheduled
    inputs.b_seq_len[num_rows:] = 0
    inputs.row_flags[:num_rows] = flags
    inputs.row_flags[num_rows:] = 0
    inputs.b_start_loc[0] = 0
    np.cumsum(num_scheduled, out=inputs.b_start_loc[1 : num_rows + 1])
    inputs.b_start_loc[num_rows + 1 :] = num_tokens

    # decode rows come first, one token each; `tokens` holds the ids of all others in row order
    inputs.input_ids[:num_decode] = rows.views.last_token[row[:num_decode]]
    inputs.input_ids[num_decode:num_tokens] = _section(words, sp.TOKENS, 1)[:, 0]
    starts = inputs.b_start_loc[:num_rows]
    positions = np.arange(num_tokens, dtype=np.int32) + np.repeat(num_computed - starts, num_scheduled)
    blocks = rows.views.block_table[np.repeat(row, num_scheduled), positions // rows.block_size]
    inputs.position_ids[:num_tokens] = positions
    inputs.slot_mapping[:num_tokens] = blocks.astype(np.int64) * rows.block_size + positions % rows.block_size
    for tensor in (inputs.input_ids, inputs.position_ids, inputs.slot_mapping):
        tensor[num_tokens:] = 0
