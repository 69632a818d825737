"""Writes StepPlans and step states for tests."""

import numpy as np
import torch

from runtime.kernels import step_plan as sp
from runtime.kernels.step_state import RowState, StepInputs, StepOutputs

_WORDS = {
    name[4:].lower(): getattr(sp, name)
    for name in dir(sp)
    if name.startswith("REC_") and name not in ("REC_SEED", "REC_ROW")
}
_LISTS = ("known_ids", "logit_bias", "allowed_ids", "masked_ids")
_DEFAULTS = dict(temperature=1.0, top_p=1.0, repetition_penalty=1.0, num_logprobs=-1, score_start=-1)


def float_bits(value):
    return int(np.float32(value).view(np.int32))


def build_plan(rows=(), tokens=(), new_blocks=(), new_rows=(), num_decode_rows=0, step=1):
    """An int32 tensor. `rows`: (row, num_computed, num_scheduled, flags); `new_blocks`: (row, index, block);
    `new_rows`: dicts of the record's fields, lists included (`logit_bias`: pairs of id and value)."""
    words = [0] * sp.HEADER_WORDS
    words[0], words[sp.STEP], words[sp.NUM_ROWS], words[sp.NUM_DECODE_ROWS] = 1, step, len(rows), num_decode_rows
    words[sp.NUM_TOKENS] = sum(row[2] for row in rows)
    words[sp.MAX_LEN] = max((row[1] + row[2] for row in rows), default=0)

    def section(pair, entries):
        words[pair : pair + 2] = len(words), len(entries)
        words.extend(np.ravel(entries).astype(int).tolist())

    section(sp.ROWS, rows)
    section(sp.TOKENS, tokens)
    section(sp.NEW_BLOCKS, new_blocks)
    _write_records(words, new_rows)
    section(sp.COPIES, ())
    section(sp.FREED_ROWS, ())
    words[sp.NUM_WORDS] = len(words)
    return torch.tensor(words, dtype=torch.int32)


def _write_records(words, new_rows):
    first = len(words)
    words[sp.NEW_ROWS : sp.NEW_ROWS + 2] = first, len(new_rows)
    words.extend([0] * (len(new_rows) * sp.NEW_ROW_WORDS))
    for i, given in enumerate(new_rows):
        at, fields = first + i * sp.NEW_ROW_WORDS, _DEFAULTS | given
        words[at] = fields.pop("row")
        words[at + sp.REC_SEED : at + sp.REC_SEED + 2] = np.array([fields.pop("seed", 0)]).view(np.int32).tolist()
        for name, value in fields.items():
            word = at + _WORDS[name]
            if name in _LISTS:
                words[word : word + 2] = len(words), len(value)
                flat = [(i, float_bits(v)) for i, v in value] if name == "logit_bias" else value
                words.extend(np.ravel(flat).astype(int).tolist())
            else:
                words[word] = float_bits(value) if isinstance(value, float) else value


def allocate(device, *, max_num_seqs=4, max_model_len=64, block_size=4, vocab_size=100, max_num_batched_tokens=32):
    """(rows, inputs, outputs) whose contents are not zeros: what is not written is seen."""
    rows = RowState.allocate(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        block_size=block_size,
        vocab_size=vocab_size,
        device=device,
    )
    inputs = StepInputs.allocate(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, device=device
    )
    for tensor in (inputs.input_ids, inputs.position_ids, inputs.slot_mapping, inputs.b_start_loc, rows.last_token):
        tensor.copy_(torch.arange(len(tensor)) + 70)
    for tensor in (inputs.b_row, inputs.b_seq_len, inputs.row_flags, rows.temperature, rows.seed, rows.num_bias):
        tensor.fill_(77)
    return rows, inputs, StepOutputs.allocate(max_num_seqs=max_num_seqs, device=device)
