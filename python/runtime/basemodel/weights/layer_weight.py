"""The weights of one layer, from its declarations, and what holds for all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any, ClassVar

from ...errors import ModelFormatError
from ...loader import ModelConfig
from .param import Param, Placement, Shard, WeightSource


class BaseLayerWeight:
    """Declares parameters as class attributes, in a subclass; nothing is read before `load`.

    Args:
        placement: where this rank's share lives.
        config: of the model.
        layer_num: index of the layer, for the `{layer}` of `prefix`.
    """

    prefix: ClassVar[str] = ""
    params: ClassVar[tuple[Param[Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Param)}
        inherited = tuple(param for param in cls.params if param.attribute not in vars(cls))
        cls.params = inherited + tuple(declared.values())

    def __init__(self, placement: Placement, config: ModelConfig, layer_num: int | None = None) -> None:
        self.placement, self.config, self.layer_num_ = placement, config, layer_num
        self._prefix = self.prefix.format(layer=layer_num)

    def shards(self) -> Iterator[Shard]:
        """Everything this layer needs of the checkpoint."""
        for param in self._own_params():
            for shards in param.shards(self._prefix, self.config, self.placement.tp).values():
                yield from shards

    def tied_names(self) -> Iterator[str]:
        """Tensors that a checkpoint may repeat though another one is used for them."""
        for param in self.params:
            if param.ties_to(self.config) is not None:
                for shards in param.shards(self._prefix, self.config, self.placement.tp).values():
                    yield from (shard.name for shard in shards)

    @property
    def num_bytes(self) -> int:
        """Bytes on this rank's device, from the declarations alone."""
        return sum(param.stored_bytes(self._prefix, self.config, self.placement) for param in self._own_params())

    def load(self, source: WeightSource) -> None:
        """Reads this rank's share; REQUIRES: `verify_load` passed."""
        loaded = {p.attribute: p.load(self._prefix, self.config, self.placement, source) for p in self._own_params()}
        for param in self.params:
            tensors = loaded[param.ties_to(self.config) or param.attribute]
            setattr(self, param.attribute, param.place(tensors, self.config, self.placement))

    def _own_params(self) -> Iterator[Param[Any]]:
        return (param for param in self.params if param.ties_to(self.config) is None)


class PreAndPostLayerWeight(BaseLayerWeight):
    """What lies around the layers: `embed_tokens`, `final_norm`, `lm_head` for the templates."""


class TransformerLayerWeight(BaseLayerWeight):
    """One layer: `att_norm`, `qkv_proj`, `o_proj`, `ffn_norm` for the template, and its feed-forward."""


def verify_load(layers: Sequence[BaseLayerWeight], source: WeightSource, ignored: Iterable[str]) -> None:
    """ModelFormatError with every missing, mis-shaped and unused tensor, as the checkpoint names them.

    Args:
        layers: all of the model.
        source: the checkpoint.
        ignored: names, as `fnmatch` patterns, of tensors that the family's checkpoints carry without need.
    """
    found = source.tensors
    needed = {source.name_of(shard.name): shard for layer in layers for shard in layer.shards()}
    problems = [f"missing: {name} {list(shard.shape)}" for name, shard in needed.items() if name not in found]
    problems += [
        f"mis-shaped: {name} is {list(found[name].shape)}, the config makes it {list(shard.shape)}"
        for name, shard in needed.items()
        if name in found and found[name].shape != shard.shape
    ]
    tied = {source.name_of(name) for layer in layers for name in layer.tied_names()}
    patterns = [source.name_of(pattern) for pattern in ignored]
    problems += [
        f"unused: {name} {list(info.shape)}"
        for name, info in found.items()
        if name not in needed and name not in tied and not any(fnmatch(name, pattern) for pattern in patterns)
    ]
    if problems:
        raise ModelFormatError(problems)


def dummy_tensors(layers: Sequence[BaseLayerWeight]) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape and mean of every tensor of a checkpoint of this model."""
    return {shard.name: (shard.shape, shard.mean) for layer in layers for shard in layer.shards()}
