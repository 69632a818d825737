"""`sample` without Triton: numpy over whole groups of rows, sorted where the kernel searches for a threshold.

Every row is computed by operations that go along the vocabulary only, so that its result does not depend on its
neighbours. Ties go to the lowest id everywhere.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import step_plan as sp
from .step_state import RowState, SampleWorkspace, StepInputs, StepOutputs

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]

_NOISE_INCREMENT = np.uint32(0x9E3779B9)


def sample(
    logits: torch.Tensor,
    rows: RowState,
    inputs: StepInputs,
    outputs: StepOutputs,
    *,
    greedy_only: bool = False,
    workspace: SampleWorkspace | None = None,
) -> None:
    """Chooses one token for every row with ROW_SAMPLE, as vLLM does, and appends it to the row.

    Order: logit bias, allowed ids, ids masked below min_tokens; repetition (prompt and output), frequency and presence
    penalties (output only); greedy rows take the argmax here. Then temperature, min_p, top_k, top_p (each on what the
    one before left, values equal to the last kept one are kept too), and the argmax of logit plus Gumbel noise.

    Args:
        logits: [batch, vocab], float32 or the model's dtype, row i of the step inputs. Not changed.
        rows: `last_token[row]` and `token_ids[row, context length]` receive the token.
        outputs: `token_ids[:batch]` is written whole, -1 for rows that are not sampled; logprobs where asked for.
        greedy_only: every sampled row is GREEDY and has no other flag (STEP_GREEDY_ONLY of the plan).
        workspace: for the Triton kernel; unused.
    """
    if logits.device.type != "cpu":
        _sample_on_host(logits, rows, inputs, outputs, greedy_only)
        return
    batch = logits.shape[0]
    state, step = rows.views, inputs.views
    index = np.flatnonzero(step.row_flags[:batch] & sp.ROW_SAMPLE)
    chosen = logits if len(index) == batch else logits[torch.from_numpy(index)]
    if greedy_only:
        tokens = chosen.argmax(-1).numpy()
    else:
        tokens = _choose(chosen.float().numpy(), step.b_row[index], step.b_seq_len[index], state, outputs.views, index)
    _write_tokens(tokens.astype(np.int32), index, batch, state, step, outputs.views)


def _sample_on_host(
    logits: torch.Tensor, rows: RowState, inputs: StepInputs, outputs: StepOutputs, greedy_only: bool
) -> None:
    host_rows, host_outputs = rows.to("cpu"), outputs.to("cpu")
    sample(logits.cpu(), host_rows, inputs.to("cpu"), host_outputs, greedy_only=greedy_only)
    rows.copy_from(host_rows)
    outputs.copy_from(host_outputs)


def _write_tokens(
    tokens: Ints, index: Ints, batch: int, state: SimpleNamespace, step: SimpleNamespace, out: SimpleNamespace
) -> None:
    out.token_ids[:batch] = -1
    out.token_ids[index] = tokens
    row, position = step.b_row[index], step.b_seq_len[index]
    state.last_token[row] = tokens
    fits = position < state.token_ids.shape[1]
    state.token_ids[row[fits], position[fits]] = tokens[fits]


def _choose(raw: Floats, row: Ints, seq_len: Ints, state: SimpleNamespace, out: SimpleNamespace, index: Ints) -> Ints:
    flags = state.flags[row]
    logits = raw
    if (flags & (sp.LOGIT_BIAS | sp.ALLOWED | sp.MIN_TOKENS | sp.PENALTIES)).any():
        logits = raw.copy()
        add_logit_bias(logits, row, flags, state)
        mask_ids(logits, row, seq_len, flags, state)
        apply_penalties(logits, row, seq_len, flags, state)
    tokens: Ints = logits.argmax(-1)
    random = np.flatnonzero(~flags & sp.GREEDY)
    if len(random):
        tokens[random] = _draw(logits[random], row[random], seq_len[random], flags[random], state)
    _write_logprobs(raw, tokens, row, flags, state, out, index)
    return tokens


def add_logit_bias(logits: Floats, row: Ints, flags: Ints, state: SimpleNamespace) -> None:
    """Adds each row's biases to `logits` [n, vocab] in place. A row's ids are distinct."""
    index = np.flatnonzero(flags & sp.LOGIT_BIAS)
    line, entry = np.nonzero(np.arange(state.bias_ids.shape[1]) < state.num_bias[row[index], None])
    logits[index[line], state.bias_ids[row[index]][line, entry]] += state.bias_values[row[index]][line, entry]


def mask_ids(logits: Floats, row: Ints, seq_len: Ints, flags: Ints, state: SimpleNamespace) -> None:
    """Sets to -inf what is not allowed, and eos and stop ids while the output is shorter than min_tokens."""
    index = np.flatnonzero(flags & sp.ALLOWED)
    if len(index):
        bits = np.unpackbits(state.allowed_mask[row[index]].view(np.uint8), axis=1, bitorder="little")
        line, ids = np.nonzero(bits[:, : logits.shape[1]] == 0)
        logits[index[line], ids] = -np.inf
    too_short = seq_len - state.prompt_len[row] < state.min_tokens[row]
    index = np.flatnonzero((flags & sp.MIN_TOKENS != 0) & too_short)
    line, entry = np.nonzero(np.arange(state.masked_ids.shape[1]) < state.num_masked[row[index], None])
    logits[index[line], state.masked_ids[row[index]][line, entry]] = -np.inf


def apply_penalties(logits: Floats, row: Ints, seq_len: Ints, flags: Ints, state: SimpleNamespace) -> None:
    """Repetition divides positive and multiplies negative logits of ids of prompt and output; frequency (times the
    count) and presence are subtracted for ids of the output."""
    index = np.flatnonzero(flags & sp.PENALTIES)
    if not len(index):
        return
    row, vocab = row[index], logits.shape[1]
    position = np.arange(seq_len[index].max())
    known = position < seq_len[index, None]
    ids = np.where(known, state.token_ids[row, : len(position)], 0) + np.arange(len(index))[:, None] * vocab
    output = known & (position >= state.prompt_len[row, None])
    shape = (len(index), vocab)
    seen = np.bincount(ids[known], minlength=len(index) * vocab).reshape(shape) > 0
    count = np.bincount(ids[output], minlength=len(index) * vocab).reshape(shape).astype(np.float32)
    line = logits[index]
    repetition = np.where(seen, state.repetition_penalty[row, None], np.float32(1.0))
    line = np.where(line > 0, line / repetition, line * repetition)
    line -= state.frequency_penalty[row, None] * count
    line -= state.presence_penalty[row, None] * (count > 0)
    logits[index] = line


def _draw(logits: Floats, row: Ints, seq_len: Ints, flags: Ints, state: SimpleNamespace) -> Ints:
    inverse = (np.float32(1.0) / state.temperature[row])[:, None]
    index = np.flatnonzero(flags & sp.FILTER)
    if len(index):
        floor = filter_thresholds(logits[index], inverse[index], row[index], state)
        logits[index] = np.where(logits[index] >= floor[:, None], logits[index], -np.inf)
    tokens: Ints = (logits * inverse + gumbel_noise(state.seed[row], seq_len, logits.shape[1])).argmax(-1)
    return tokens


def filter_thresholds(logits: Floats, inverse: Floats, row: Ints, state: SimpleNamespace) -> Floats:
    """The smallest logit of each row [n, vocab] that min_p, top_k and top_p leave, [n]; `inverse` [n, 1] is
    1 / temperature."""
    ordered = -np.sort(-logits, axis=-1)
    top, vocab = ordered[:, :1], logits.shape[1]
    min_p, top_p, top_k = state.min_p[row], state.top_p[row], state.top_k[row]
    with np.errstate(divide="ignore"):
        floor = top[:, 0] + np.log(min_p) / inverse[:, 0]
    kth = np.where(top_k > 0, np.minimum(top_k, vocab), vocab) - 1
    floor = np.maximum(floor, ordered[np.arange(len(row)), kth])
    mass = np.exp(((ordered - top) * inverse).astype(np.float64)) * (ordered >= floor[:, None])
    total = np.cumsum(mass, axis=-1)
    # the first entry at which the kept mass reaches top_p of what the other two filters left
    last = np.argmax(total >= top_p[:, None].astype(np.float64) * total[:, -1:], axis=-1)
    nucleus = np.where(top_p < 1.0, ordered[np.arange(len(row)), last], -np.inf)
    threshold: Floats = np.maximum(floor, nucleus).astype(np.float32)
    return threshold


def _mix(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def noise_bits(seed: Ints, position: Ints, vocab: int) -> npt.NDArray[np.uint32]:
    """32 random bits for each (seed [n] int64, position [n] int32, vocabulary id), [n, vocab] uint32.

    The mixer is Chris Wellons' lowbias32 (github.com/skeeto/hash-prospector), used as a counter-based generator:
    seed and position make two keys; the id is mixed under the first, then under the second.
    """
    words = np.ascontiguousarray(seed).view(np.uint32).reshape(-1, 2)
    key = _mix(_mix(words[:, 0]) + words[:, 1])
    key = _mix(key ^ position.astype(np.uint32))
    second = _mix(key + _NOISE_INCREMENT)
    ids = np.arange(vocab, dtype=np.uint32)
    return _mix(_mix(ids ^ key[:, None]) + second[:, None])


def gumbel_noise(seed: Ints, position: Ints, vocab: int) -> Floats:
    """Standard Gumbel noise [n, vocab] float32 from `noise_bits`.

    Its bits are the same everywhere up to the logarithms, whose last bits differ between libraries.
    """
    # v in (0, 1), fine near 0: that end makes the large values, -log(-log(1 - v))
    v = (noise_bits(seed, position, vocab).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    v = np.minimum(v, np.float32(1.0 - 2.0**-24))
    series = v * (np.float32(1.0) + v * (np.float32(0.5) + v * np.float32(1.0 / 3.0)))
    exponential: Floats = np.where(v < np.float32(2.0**-8), series, -np.log(np.float32(1.0) - v))
    return -np.log(exponential)


def _write_logprobs(
    raw: Floats, tokens: Ints, row: Ints, flags: Ints, state: SimpleNamespace, out: SimpleNamespace, index: Ints
) -> None:
    lines = np.flatnonzero(flags & sp.LOGPROBS)
    if not len(lines):
        return
    raw, tokens, row, index = raw[lines], tokens[lines], row[lines], index[lines]
    top = raw.max(-1, keepdims=True)
    log_sum = top.astype(np.float64) + np.log(np.exp((raw - top).astype(np.float64)).sum(-1, keepdims=True))
    count = np.maximum(state.num_logprobs[row], 0)
    best = _top_ids(raw, int(count.max()))
    ids = np.concatenate([tokens[:, None], best], axis=1)
    values = (np.take_along_axis(raw, ids, axis=1) - log_sum).astype(np.float32)
    unused = np.arange(ids.shape[1]) > count[:, None]
    width = ids.shape[1]
    out.logprob_ids[index, :width] = np.where(unused, -1, ids)
    out.logprobs[index, :width] = np.where(unused, -np.inf, values)
    out.logprob_ids[index, width:] = -1
    out.logprobs[index, width:] = -np.inf


def _top_ids(raw: Floats, count: int) -> Ints:
    """Ids of the `count` largest values of each row; distinct integer keys make the order of equal ones certain."""
    bits = (raw + np.float32(0.0)).view(np.int32)  # -0.0 becomes 0.0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    ids = np.arange(raw.shape[1], dtype=np.int64)
    keys = torch.from_numpy((order << 32) | (0xFFFFFFFF - ids))
    best: Ints = keys.topk(count, dim=-1).indices.numpy()
    return best
