"""What a step reads and writes on the device: the rows that never move, the step's inputs and its outputs.

All tensors are allocated once, so that a captured graph finds them at the same addresses.
`R = max_num_seqs + 1`; the last row is scratch for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import torch

from .step_plan import MAX_BIAS, MAX_LOGPROBS, MAX_MASKED

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class _Tensors:
    """A group of tensors of one device."""

    @cached_property
    def views(self) -> SimpleNamespace:
        """The tensors as numpy arrays over the same memory. CPU only."""
        return SimpleNamespace(**{name: tensor.numpy() for name, tensor in self._tensors().items()})

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`; the same tensors when they live there."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def copy_from(self, other: Self) -> None:
        """Overwrites every tensor with that of `other`, on any device."""
        for name, tensor in self._tensors().items():
            tensor.copy_(getattr(other, name))

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True, eq=False)
class RowState(_Tensors):
    """State of the request slots; `prepare_step` writes a row whole when it is new, `sample` appends to it."""

    block_size: int
    vocab_size: int
    block_table: torch.Tensor  # int32 [R, max_num_blocks_per_seq], `b_loc` of the model
    last_token: torch.Tensor  # int32 [R], what the next decode step feeds
    token_ids: torch.Tensor  # int32 [R, max_model_len], known ids by position
    flags: torch.Tensor  # int32 [R], record flags of the step plan
    top_k: torch.Tensor  # int32 [R], 0: off
    prompt_len: torch.Tensor  # int32 [R]
    min_tokens: torch.Tensor  # int32 [R]
    num_logprobs: torch.Tensor  # int32 [R], -1: off
    score_start: torch.Tensor  # int32 [R], -1: off
    temperature: torch.Tensor  # float32 [R]
    top_p: torch.Tensor  # float32 [R]
    min_p: torch.Tensor  # float32 [R]
    presence_penalty: torch.Tensor  # float32 [R]
    frequency_penalty: torch.Tensor  # float32 [R]
    repetition_penalty: torch.Tensor  # float32 [R]
    seed: torch.Tensor  # int64 [R]
    bias_ids: torch.Tensor  # int32 [R, 320]
    bias_values: torch.Tensor  # float32 [R, 320]
    num_bias: torch.Tensor  # int32 [R]
    masked_ids: torch.Tensor  # int32 [R, 64], not sampled before min_tokens
    num_masked: torch.Tensor  # int32 [R]
    allowed_mask: torch.Tensor  # int32 [R, ceil(vocab / 32)], bit id % 32 of word id / 32

    @classmethod
    def allocate(
        cls, *, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int, device: torch.device | str
    ) -> RowState:
        """Rows for `max_num_seqs` requests of at most `max_model_len` tokens, and the scratch row."""
        num_rows = max_num_seqs + 1

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(num_rows, *shape, dtype=torch.int32, device=device)

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(num_rows, *shape, dtype=torch.float32, device=device)

        return cls(
            block_size=block_size,
            vocab_size=vocab_size,
            block_table=ints(-(-max_model_len // block_size)),
            last_token=ints(),
            token_ids=ints(max_model_len),
            flags=ints(),
            top_k=ints(),
            prompt_len=ints(),
            min_tokens=ints(),
            num_logprobs=ints().fill_(-1),
            score_start=ints().fill_(-1),
            temperature=floats(),
            top_p=floats().fill_(1.0),
            min_p=floats(),
            presence_penalty=floats(),
            frequency_penalty=floats(),
            repetition_penalty=floats().fill_(1.0),
            seed=torch.zeros(num_rows, dtype=torch.int64, device=device),
            bias_ids=ints(MAX_BIAS),
            bias_values=floats(MAX_BIAS),
            num_bias=ints(),
            masked_ids=ints(MAX_MASKED),
            num_masked=ints(),
            allowed_mask=ints(-(-vocab_size // 32)).fill_(-1),
        )


@dataclass(frozen=True, eq=False)
class StepInputs(_Tensors):
    """Inputs of one step, written by `prepare_step`.

    Batch rows past the plan's are padding: `b_row = R - 1`, `b_seq_len = 0`, `row_flags = 0` and no tokens
    (`b_start_loc` is the number of tokens). Tokens past the plan's: id, position and slot 0.
    """

    input_ids: torch.Tensor  # int32 [max_num_batched_tokens]
    position_ids: torch.Tensor  # int32 [max_num_batched_tokens]
    slot_mapping: torch.Tensor  # int64 [max_num_batched_tokens]
    b_row: torch.Tensor  # int32 [R]
    b_start_loc: torch.Tensor  # int32 [R + 1]
    b_seq_len: torch.Tensor  # int32 [R]
    row_flags: torch.Tensor  # int32 [R]

    @classmethod
    def allocate(cls, *, max_num_seqs: int, max_num_batched_tokens: int, device: torch.device | str) -> StepInputs:
        """Inputs of an empty step: all rows and tokens are padding. There is room for a token of every row."""
        num_rows, num_tokens = max_num_seqs + 1, max(max_num_batched_tokens, max_num_seqs + 1)

        def ints(count: int, value: int = 0) -> torch.Tensor:
            return torch.full((count,), value, dtype=torch.int32, device=device)

        return cls(
            input_ids=ints(num_tokens),
            position_ids=ints(num_tokens),
            slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=device),
            b_row=ints(num_rows, max_num_seqs),
            b_start_loc=ints(num_rows + 1),
            b_seq_len=ints(num_rows),
            row_flags=ints(num_rows),
        )


@dataclass(frozen=True, eq=False)
class StepOutputs(_Tensors):
    """What `sample` returns, by batch row. A row that was not sampled has token -1.

    The logprob columns are written for sampled rows with LOGPROBS: entry 0 is the sampled token, then the top
    `num_logprobs` in descending order (equal ones by ascending id), then id -1 and -inf.
    """

    token_ids: torch.Tensor  # int32 [R]
    logprobs: torch.Tensor  # float32 [R, 1 + 20], from the raw logits
    logprob_ids: torch.Tensor  # int32 [R, 1 + 20]

    @classmethod
    def allocate(cls, *, max_num_seqs: int, device: torch.device | str) -> StepOutputs:
        shape = (max_num_seqs + 1, 1 + MAX_LOGPROBS)
        return cls(
            token_ids=torch.full(shape[:1], -1, dtype=torch.int32, device=device),
            logprobs=torch.zeros(shape, dtype=torch.float32, device=device),
            logprob_ids=torch.full(shape, -1, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, eq=False)
class SampleWorkspace(_Tensors):
    """Memory of the Triton `sample`, for graphs that must not allocate: 8 bytes a logit of the largest batch.

    With `greedy_only` what greedy steps do not touch is left out.
    """

    CHUNK: ClassVar[int] = 4096  # logits of one program
    MAX_CANDIDATES: ClassVar[int] = 8192
    NUM_PIVOTS: ClassVar[int] = 16
    TOP: ClassVar[int] = 32  # a power of two above MAX_LOGPROBS

    num_chunks: int
    best_values: torch.Tensor  # float32 [R, chunks], best_ids int32: each chunk's choice
    best_ids: torch.Tensor
    edited: torch.Tensor  # float32 [R, vocab], logits of the rows that change them
    counts: torch.Tensor  # int32 [R, vocab], zeros between steps
    chunk_max: torch.Tensor  # float32 [R, chunks]
    pivot_counts: torch.Tensor  # float32 [R, chunks, NUM_PIVOTS]
    pivot_masses: torch.Tensor
    candidates: torch.Tensor  # float32 [R, MAX_CANDIDATES]
    thresholds: torch.Tensor  # float32 [R, 2]
    chunk_stats: torch.Tensor  # float32 [R, chunks, 2], for logprobs
    top_values: torch.Tensor  # float32 [R, chunks, TOP], top_ids int32: each chunk's largest logits
    top_ids: torch.Tensor

    @classmethod
    def allocate(
        cls, *, max_num_seqs: int, vocab_size: int, device: torch.device | str, greedy_only: bool = False
    ) -> SampleWorkspace:
        num_chunks = -(-vocab_size // cls.CHUNK)
        num_rows = max_num_seqs + 1
        full = 0 if greedy_only else num_rows

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        return cls(
            num_chunks=num_chunks,
            best_values=floats(num_rows, num_chunks),
            best_ids=ints(num_rows, num_chunks),
            edited=floats(full, vocab_size),
            counts=torch.zeros(full, vocab_size, dtype=torch.int32, device=device),
            chunk_max=floats(full, num_chunks),
            pivot_counts=floats(full, num_chunks, cls.NUM_PIVOTS),
            pivot_masses=floats(full, num_chunks, cls.NUM_PIVOTS),
            candidates=floats(full, cls.MAX_CANDIDATES),
            thresholds=floats(full, 2),
            chunk_stats=floats(full, num_chunks, 2),
            top_values=floats(full, num_chunks, cls.TOP),
            top_ids=ints(full, num_chunks, cls.TOP),
        )
