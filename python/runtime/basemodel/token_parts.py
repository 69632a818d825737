"""Large steps over several ranks in two parts of their tokens: the sum of one is made while the other computes.

From the attention of one layer to that of the next no token looks at another, so the parts go their own ways there and
meet again at each attention, which sees the whole step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .infer import Stream, TransformerLayerInferTpl
from .infer_state import InferStateInfo

if TYPE_CHECKING:
    from .base_model import TpPartBaseModel

MIN_TOKENS = 2048  # of a step: products of half as many rows are still as efficient
_ALIGNMENT = 128  # tokens: rows of a tile


def first_part_tokens(num_tokens: int) -> int:
    """Tokens of the first part, which is the larger one."""
    return min(-(-num_tokens // (2 * _ALIGNMENT)) * _ALIGNMENT, num_tokens)


@dataclass(frozen=True)
class TokenPart:
    """Some tokens of a step.

    Attributes:
        state: the step's, but `position_ids`, `slot_mapping` and what the family derives from them are of these tokens.
    """

    tokens: slice
    state: InferStateInfo


def is_worth_parts(model: TpPartBaseModel, infer_state: InferStateInfo) -> bool:
    """Whether a step is large enough, and every layer goes the template's way."""
    worth = model.tp_group.overlaps and infer_state.is_prefill and len(infer_state.position_ids) >= MIN_TOKENS
    return worth and all(_follows_template(type(layer)) for layer in model.layers_infer)


def _follows_template(layer: type) -> bool:
    template = TransformerLayerInferTpl
    return issubclass(layer, template) and all(
        getattr(layer, name) is getattr(template, name) for name in ("_block", "context_forward")
    )


def run_in_parts(model: TpPartBaseModel, stream: Stream, input_ids: Tensor, infer_state: InferStateInfo) -> Stream:
    """The stream of the embedding through all layers; x of the result is a summand, as after `context_forward`."""
    middle = first_part_tokens(len(input_ids))
    bounds = (slice(0, middle), slice(middle, len(input_ids)))
    parts = [TokenPart(tokens, _state_of(tokens, model, input_ids, infer_state)) for tokens in bounds]
    streams, begin, (_, residual) = _divided(stream, parts), model.tp_group.start_sum, stream
    last = len(model.layers_infer) - 1
    for i, (layer, weight) in enumerate(zip(model.layers_infer, model.trans_layers_weight)):
        begin_next = begin if i < last else _unsummed
        streams = layer.context_forward_in_parts(streams, parts, infer_state, weight, begin, begin_next)  # type: ignore[attr-defined]
    x = residual.new_empty(residual.shape)
    for (summand, _), part in zip(streams, parts):
        x[part.tokens] = summand  # type: ignore[assignment]
    return x, residual


def _state_of(tokens: slice, model: TpPartBaseModel, input_ids: Tensor, step: InferStateInfo) -> InferStateInfo:
    state = copy.copy(step)
    state.position_ids, state.slot_mapping = step.position_ids[tokens], step.slot_mapping[tokens]
    model.init_extra_state(state, input_ids[tokens])
    return state


def _divided(stream: Stream, parts: list[TokenPart]) -> list[Stream]:
    x, residual = stream
    assert x is None or isinstance(x, Tensor)
    return [(None if x is None else x[part.tokens], residual[part.tokens]) for part in parts]


def _unsummed(x: Tensor) -> Tensor:
    return x
