"""Sampling without a sort or a softmax: the argmax of logits plus Gumbel noise over what the filters left.

A row is cut into chunks of a fixed size, one program each, so that its result does not depend on the batch.
Greedy steps take two launches; others six more, in which rows that do not need them return at once.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, libdevice

from . import step_plan as sp
from .launch import capability, pdl_options
from .sample_edit import copy_logits_kernel, edit_logits_kernel, is_edited, load_logits
from .sample_filter import chunk_max_kernel, collect_kernel, pivot_kernel, threshold_kernel
from .step_state import RowState, SampleWorkspace, StepInputs, StepOutputs

_SAMPLE = tl.constexpr(sp.ROW_SAMPLE)
_GREEDY = tl.constexpr(sp.GREEDY)
_LOGPROBS = tl.constexpr(sp.LOGPROBS)
_TOP = tl.constexpr(SampleWorkspace.TOP)
_MAX_LOGPROBS = tl.constexpr(sp.MAX_LOGPROBS)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise_bits(seed, position, ids):
    """32 random bits for each id of one row; `noise_bits` of reference_sampling.py, with its source."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key = _mix(_mix(_mix(low) + high) ^ position.to(tl.uint32))
    second = _mix(key + 0x9E3779B9)
    return _mix(_mix(ids.to(tl.uint32) ^ key) + second)


@triton.jit
def _log(x, FAST: tl.constexpr):
    return libdevice.fast_logf(x) if FAST else tl.log(x)


@triton.jit
def gumbel_noise(seed, position, ids, FAST: tl.constexpr):
    """-log(-log(1 - v)); with FAST each logarithm is off by 1e-7 at most, which moves the result by 3e-5."""
    v = (noise_bits(seed, position, ids).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2**-32
    v = tl.minimum(v, 0.99999994)
    series = v * (1.0 + v * (0.5 + v * 0.3333333333333333))
    return -_log(tl.where(v < 0.00390625, series, -_log(1.0 - v, FAST)), FAST)


@triton.jit
def _chunk_logprobs(x, chunk_ids, num_logprobs, chunk_stats_ptr, top_values_ptr, top_ids_ptr, CHUNK: tl.constexpr):
    """The chunk's largest raw logit, its sum of exp(logit - largest), and its largest logits in order."""
    largest = tl.max(x, axis=0)
    tl.store(chunk_stats_ptr, largest)
    tl.store(chunk_stats_ptr + 1, tl.sum(tl.exp(x - largest), axis=0))
    lanes = tl.arange(0, CHUNK)
    for rank in range(0, num_logprobs):
        value, lane = tl.max(x, axis=0, return_indices=True)
        tl.store(top_values_ptr + rank, value)
        tl.store(top_ids_ptr + rank, chunk_ids + lane)
        x = tl.where(lanes == lane, float("-inf"), x)


@triton.jit
def _best_of_chunk_kernel(
    logits_ptr,
    edited_ptr,
    b_row_ptr,
    row_flags_ptr,
    b_seq_len_ptr,
    flags_ptr,
    temperature_ptr,
    seed_ptr,
    num_logprobs_ptr,
    thresholds_ptr,
    best_values_ptr,
    best_ids_ptr,
    chunk_stats_ptr,
    top_values_ptr,
    top_ids_ptr,
    logits_stride,
    vocab_size,
    num_chunks,
    GREEDY_ONLY: tl.constexpr,
    FAST_LOG: tl.constexpr,
    USE_PDL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid [batch, chunks]."""
    i, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    if (tl.load(row_flags_ptr + i) & _SAMPLE) != 0:
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        line = logits_ptr + i * logits_stride
        part = i * num_chunks + chunk
        if GREEDY_ONLY:
            x = tl.load(line + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
        else:
            row = tl.load(b_row_ptr + i)
            flags = tl.load(flags_ptr + row)
            if (flags & _LOGPROBS) != 0:
                raw = tl.load(line + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
                _chunk_logprobs(
                    raw,
                    chunk * CHUNK,
                    tl.load(num_logprobs_ptr + row),
                    chunk_stats_ptr + 2 * part,
                    top_values_ptr + part * _TOP,
                    top_ids_ptr + part * _TOP,
                    CHUNK,
                )
            x = load_logits(line, edited_ptr + i * vocab_size, is_edited(flags), ids, ids < vocab_size)
            if (flags & _GREEDY) == 0:
                x = (x - tl.load(thresholds_ptr + 2 * i)) * (1.0 / tl.load(temperature_ptr + row))
                noise = gumbel_noise(tl.load(seed_ptr + row), tl.load(b_seq_len_ptr + i), ids, FAST_LOG)
                x = tl.where(x >= tl.load(thresholds_ptr + 2 * i + 1), x + noise, float("-inf"))
        value, lane = tl.max(x, axis=0, return_indices=True)  # the lowest of equal ones
        tl.store(best_values_ptr + part, value)
        tl.store(best_ids_ptr + part, chunk * CHUNK + lane)


@triton.jit
def _write_logprobs(
    token,
    logit,
    num_logprobs,
    chunk_stats_ptr,
    top_values_ptr,
    top_ids_ptr,
    logprobs_ptr,
    logprob_ids_ptr,
    num_chunks,
    BLOCK_C: tl.constexpr,
):
    chunks, ranks = tl.arange(0, BLOCK_C), tl.arange(0, _TOP)
    largest = tl.load(chunk_stats_ptr + 2 * chunks, mask=chunks < num_chunks, other=float("-inf"))
    sums = tl.load(chunk_stats_ptr + 2 * chunks + 1, mask=chunks < num_chunks, other=0.0)
    row_largest = tl.max(largest, axis=0)
    log_sum = row_largest + tl.log(tl.sum(sums * tl.exp(largest - row_largest), axis=0))
    tl.store(logprobs_ptr, logit - log_sum)
    tl.store(logprob_ids_ptr, token)
    unused = (ranks >= num_logprobs) & (ranks < _MAX_LOGPROBS)
    tl.store(logprobs_ptr + 1 + ranks, tl.full([_TOP], float("-inf"), tl.float32), mask=unused)
    tl.store(logprob_ids_ptr + 1 + ranks, tl.full([_TOP], -1, tl.int32), mask=unused)
    # candidates in the order of chunks, in a chunk by rank: of equal values the first has the lowest id
    at = tl.arange(0, BLOCK_C * _TOP)
    mask = (at // _TOP < num_chunks) & (at % _TOP < num_logprobs)
    values = tl.load(top_values_ptr + at, mask=mask, other=float("-inf"))
    for rank in range(0, num_logprobs):
        value, index = tl.max(values, axis=0, return_indices=True)
        tl.store(logprobs_ptr + 1 + rank, value - log_sum)
        tl.store(logprob_ids_ptr + 1 + rank, tl.load(top_ids_ptr + index))
        values = tl.where(at == index, float("-inf"), values)


@triton.jit
def _finish_kernel(
    logits_ptr,
    b_row_ptr,
    row_flags_ptr,
    b_seq_len_ptr,
    flags_ptr,
    num_logprobs_ptr,
    last_token_ptr,
    token_ids_ptr,
    best_values_ptr,
    best_ids_ptr,
    chunk_stats_ptr,
    top_values_ptr,
    top_ids_ptr,
    out_token_ids_ptr,
    out_logprobs_ptr,
    out_logprob_ids_ptr,
    logits_stride,
    token_ids_stride,
    max_model_len,
    num_chunks,
    GREEDY_ONLY: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The best of the chunks' best, appended to the row. Grid [batch]."""
    i = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = -1
    if (tl.load(row_flags_ptr + i) & _SAMPLE) != 0:
        row = tl.load(b_row_ptr + i).to(tl.int64)
        chunks = tl.arange(0, BLOCK_C)
        mask = chunks < num_chunks
        values = tl.load(best_values_ptr + i * num_chunks + chunks, mask=mask, other=float("-inf"))
        _, chunk = tl.max(values, axis=0, return_indices=True)
        token = tl.load(best_ids_ptr + i * num_chunks + chunk)
        tl.store(last_token_ptr + row, token)
        position = tl.load(b_seq_len_ptr + i)
        tl.store(token_ids_ptr + row * token_ids_stride + position, token, mask=position < max_model_len)
        if not GREEDY_ONLY:
            if (tl.load(flags_ptr + row) & _LOGPROBS) != 0:
                _write_logprobs(
                    token,
                    tl.load(logits_ptr + i * logits_stride + token).to(tl.float32),
                    tl.load(num_logprobs_ptr + row),
                    chunk_stats_ptr + i * num_chunks * 2,
                    top_values_ptr + i * num_chunks * _TOP,
                    top_ids_ptr + i * num_chunks * _TOP,
                    out_logprobs_ptr + i * (1 + _MAX_LOGPROBS),
                    out_logprob_ids_ptr + i * (1 + _MAX_LOGPROBS),
                    num_chunks,
                    BLOCK_C,
                )
    tl.store(out_token_ids_ptr + i, token)


def _parts(batch: int, work: SampleWorkspace) -> int:
    """Programs a row that share its chunks: about one wave in all, since programs without work cost time too."""
    return max(1, min(work.num_chunks, 1024 // batch))


def _edit(logits: Tensor, rows: RowState, inputs: StepInputs, work: SampleWorkspace) -> None:
    batch, vocab_size = logits.shape
    copy_logits_kernel[(batch, _parts(batch, work))](
        logits,
        work.edited,
        inputs.b_row,
        inputs.row_flags,
        rows.flags,
        rows.allowed_mask,
        logits.stride(0),
        rows.allowed_mask.stride(0),
        vocab_size,
        work.num_chunks,
        CHUNK=work.CHUNK,
        num_warps=8,
        **pdl_options(logits),
    )
    edit_logits_kernel[(batch,)](
        work.edited,
        work.counts,
        inputs.b_row,
        inputs.row_flags,
        inputs.b_seq_len,
        rows.flags,
        rows.token_ids,
        rows.prompt_len,
        rows.min_tokens,
        rows.bias_ids,
        rows.bias_values,
        rows.num_bias,
        rows.masked_ids,
        rows.num_masked,
        rows.presence_penalty,
        rows.frequency_penalty,
        rows.repetition_penalty,
        rows.token_ids.stride(0),
        vocab_size,
        BLOCK_BIAS=triton.next_power_of_2(sp.MAX_BIAS),
        BLOCK=1024,
        num_warps=4,
        **pdl_options(logits),
    )


def _filter(logits: Tensor, rows: RowState, inputs: StepInputs, work: SampleWorkspace) -> None:
    batch, vocab_size = logits.shape
    line = (logits, work.edited, inputs.b_row, inputs.row_flags, rows.flags)
    limits = (rows.top_k, rows.top_p, rows.min_p)
    pivots = (work.chunk_max, work.pivot_counts, work.pivot_masses)
    sizes = (logits.stride(0), vocab_size, work.num_chunks)
    grid, block_c, pdl = (batch, _parts(batch, work)), triton.next_power_of_2(work.num_chunks), pdl_options(logits)
    chunk_max_kernel[grid](*line, work.chunk_max, *sizes, CHUNK=work.CHUNK, num_warps=8, **pdl)
    pivot_kernel[grid](*line, rows.temperature, *pivots, *sizes, BLOCK_C=block_c, CHUNK=work.CHUNK, num_warps=8, **pdl)
    collect_kernel[grid](
        *line,
        rows.temperature,
        *limits,
        *pivots,
        work.candidates,
        *sizes,
        MAX_CANDIDATES=work.MAX_CANDIDATES,
        BLOCK_C=block_c,
        CHUNK=work.CHUNK,
        num_warps=8,
        **pdl,
    )
    threshold_kernel[(batch,)](
        *line,
        rows.temperature,
        *limits,
        *pivots,
        work.candidates,
        work.thresholds,
        *sizes,
        MAX_CANDIDATES=work.MAX_CANDIDATES,
        BLOCK_C=block_c,
        BLOCK=2048,
        num_warps=8,
        **pdl,
    )


def sample(
    logits: Tensor,
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
        workspace: allocated when None; a captured graph needs one.
    """
    batch, vocab_size = logits.shape
    assert logits.stride(1) == 1 and batch <= inputs.b_row.shape[0]
    work = workspace or SampleWorkspace.allocate(
        max_num_seqs=batch, vocab_size=vocab_size, device=logits.device, greedy_only=greedy_only
    )
    assert work.best_ids.shape[0] >= batch and work.num_chunks == triton.cdiv(vocab_size, work.CHUNK)
    if not greedy_only:
        assert work.edited.shape[0] >= batch and work.edited.shape[1] == vocab_size
        _edit(logits, rows, inputs, work)
        _filter(logits, rows, inputs, work)
    _best_of_chunk_kernel[(batch, work.num_chunks)](
        logits,
        work.edited,
        inputs.b_row,
        inputs.row_flags,
        inputs.b_seq_len,
        rows.flags,
        rows.temperature,
        rows.seed,
        rows.num_logprobs,
        work.thresholds,
        work.best_values,
        work.best_ids,
        work.chunk_stats,
        work.top_values,
        work.top_ids,
        logits.stride(0),
        vocab_size,
        work.num_chunks,
        GREEDY_ONLY=greedy_only,
        FAST_LOG=capability(logits.device) > (0, 0),
        CHUNK=work.CHUNK,
        num_warps=4 if greedy_only else 8,
        **pdl_options(logits),
    )
    _finish_kernel[(batch,)](
        logits,
        inputs.b_row,
        inputs.row_flags,
        inputs.b_seq_len,
        rows.flags,
        rows.num_logprobs,
        rows.last_token,
        rows.token_ids,
        work.best_values,
        work.best_ids,
        work.chunk_stats,
        work.top_values,
        work.top_ids,
        outputs.token_ids,
        outputs.logprobs,
        outputs.logprob_ids,
        logits.stride(0),
        rows.token_ids.stride(0),
        rows.token_ids.shape[1],
        work.num_chunks,
        GREEDY_ONLY=greedy_only,
        BLOCK_C=triton.next_power_of_2(work.num_chunks),
        num_warps=4,
        **pdl_options(logits),
    )
