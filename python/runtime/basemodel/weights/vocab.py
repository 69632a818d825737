"""Embedding and head, split by vocabulary rows; the last rank's are padded where they do not divide."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...kernels import ops
from ...loader import ModelConfig
from ...parallel import TpGroup
from .linear import Linear
from .param import Param, PlacedT, Placement, Shard


class Embedding:
    """input_ids [tokens] to [tokens, hidden], whole on every rank."""

    def __init__(self, weight: Tensor, placement: Placement) -> None:
        self.weight = weight
        self._tp = placement.tp
        self._vocab_start = placement.tp.rank * weight.shape[0]

    def __call__(self, input_ids: Tensor) -> Tensor:
        return self._tp.all_reduce(ops.embedding(input_ids, self.weight, self._vocab_start))


class LMHead(Linear):
    """x [tokens, hidden] to logits [tokens, vocab_size] in x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement, vocab_size: int) -> None:
        super().__init__(weight, bias, placement)
        self._vocab_size = vocab_size

    def __call__(self, x: Tensor) -> Tensor:
        return self._tp.all_gather(super().__call__(x))[:, : self._vocab_size]


def _rows_per_rank(config: ModelConfig, tp: TpGroup) -> int:
    return -(-int(config["vocab_size"]) // tp.size)


class _VocabParam(Param[PlacedT]):
    """A matrix [vocab_size, hidden_size] split by rows."""

    def shards(self, prefix: str, config: ModelConfig, tp: TpGroup) -> dict[str, list[Shard]]:
        vocab, hidden, rows = config["vocab_size"], config["hidden_size"], _rows_per_rank(config, tp)
        part = slice(min(tp.rank * rows, vocab), min((tp.rank + 1) * rows, vocab))
        return {"weight": [Shard(f"{prefix}{self.names[0]}.weight", (vocab, hidden), (part, slice(0, hidden)))]}

    def stored_bytes(self, prefix: str, config: ModelConfig, placement: Placement) -> int:
        return _rows_per_rank(config, placement.tp) * int(config["hidden_size"]) * placement.dtype.itemsize

    def arrange(self, parts: list[Tensor], config: ModelConfig, tp: TpGroup) -> Tensor:
        missing = _rows_per_rank(config, tp) - parts[0].shape[0]
        return F.pad(parts[0], (0, 0, 0, missing)) if missing else parts[0].clone()


class VocabParallelEmbedding(_VocabParam[Embedding]):
    """The token embedding."""

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> Embedding:
        return Embedding(tensors["weight"], placement)


class ParallelLMHead(_VocabParam[LMHead]):
    """The output layer; `tied_to` names the embedding whose rows it shares where the config ties the two."""

    def __init__(self, name: str, *, tied_to: str | None = None) -> None:
        super().__init__(name)
        self.tied_to = tied_to

    def ties_to(self, config: ModelConfig) -> str | None:
        return self.tied_to if config.get("tie_word_embeddings") else None

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> LMHead:
        return LMHead(tensors["weight"], None, placement, config["vocab_size"])
