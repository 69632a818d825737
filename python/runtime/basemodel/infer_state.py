"""One step, as the layers see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .mem_manager import MemManager

if TYPE_CHECKING:
    from .base_model import TpPartBaseModel


@dataclass(kw_only=True, eq=False)
class InferStateInfo:
    """The batch of one step. Tensors live on the model's device; a family's subclass adds what its layers read.

    Attributes:
        batch_size: rows.
        total_token_num: tokens of context over all rows, cached ones included.
        max_len_in_batch: longest context.
        is_prefill: False when each row has one new token and `token_forward` runs.
        b_loc: int32 [request slots, max blocks of a row], the whole block table.
        b_row: int32 [batch], row of `b_loc` of each batch row.
        b_start_loc: int32 [batch + 1], first new token of each row; the number of new tokens last.
        b_seq_len: int32 [batch], context length with the new tokens.
        position_ids: int32 [tokens].
        slot_mapping: int64 [tokens], `block * block_size + offset` in the cache.
        mem_manager: the KV tensors.
        max_new_tokens_in_batch: at least the longest run of new tokens of one row.
        logits_index: int64 [n], tokens that get logits; None: the last of each row.
        deterministic: results may depend on nothing but a row's own tokens.
        alibi_slopes: float32 [heads of this rank], for families with ALiBi.
    """

    batch_size: int
    total_token_num: int
    max_len_in_batch: int
    is_prefill: bool
    b_loc: Tensor
    b_row: Tensor
    b_start_loc: Tensor
    b_seq_len: Tensor
    position_ids: Tensor
    slot_mapping: Tensor
    mem_manager: MemManager
    max_new_tokens_in_batch: int
    logits_index: Tensor | None = None
    deterministic: bool = False
    alibi_slopes: Tensor | None = None

    def init_some_extra_state(
        self,
        model: TpPartBaseModel,
        batch_size: int,
        total_token_num: int,
        max_len_in_batch: int,
        input_ids: Tensor,
        b_loc: Tensor,
        b_start_loc: Tensor,
        b_seq_len: Tensor,
        is_prefill: bool,
    ) -> None:
        """Adds what a family's layers need. Must not wait for the device: it runs inside a captured step too."""
