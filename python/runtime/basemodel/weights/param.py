"""The base of every declared parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import torch
from torch import Tensor

from ...errors import ConfigError, ModelFormatError
from ...loader import ModelConfig, TensorInfo
from ...parallel import TpGroup

PlacedT = TypeVar("PlacedT")
Self = TypeVar("Self", bound="Param[Any]")
Index = tuple[slice, ...]


class WeightSource(Protocol):
    """What weights are read from: a `Checkpoint`, or its dummy."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name there."""

    def name_of(self, declared: str) -> str:
        """A declared name as the source spells it."""

    def read(self, declared: str, index: Index, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The part `index`, a slice a dimension, of a declared tensor, in `dtype` on `device`."""


@dataclass(frozen=True)
class Placement:
    """Where and how this rank's share of a model lives."""

    tp: TpGroup
    dtype: torch.dtype
    device: torch.device
    deterministic: bool = False


@dataclass(frozen=True)
class Shard:
    """A tensor of the checkpoint and the part of it that this rank holds.

    Attributes:
        name: in the checkpoint, with prefix and kind.
        shape: of the whole tensor.
        index: this rank's part, a slice a dimension; None where it holds nothing.
        mean: of its dummy values.
    """

    name: str
    shape: tuple[int, ...]
    index: Index | None
    mean: float = 0.0

    @property
    def held_shape(self) -> tuple[int, ...]:
        """Of this rank's part."""
        if self.index is None:
            return (0,) * len(self.shape)
        return tuple(len(range(*part.indices(size))) for part, size in zip(self.index, self.shape))


class Param(Generic[PlacedT]):
    """A declared parameter; on a loaded layer weight, the attribute is its placed, callable form.

    Args:
        names: in the checkpoint, without the layer's prefix and without `.weight`.
        bias: whether `.bias` tensors belong to it, or the name of the config entry that says so.
    """

    kinds = ("weight", "bias")

    def __init__(self, *names: str, bias: bool | str = False) -> None:
        self.names = names
        self.bias = bias

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute = attribute

    @overload
    def __get__(self: Self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> PlacedT: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        # The placed form lies in the instance's own dictionary, which Python looks into first.
        raise AttributeError(f"{self.attribute} of {owner.__name__} is not loaded yet")

    def has_bias(self, config: ModelConfig) -> bool:
        """Whether `.bias` tensors belong to it in a checkpoint with this config."""
        return bool(config.get(self.bias)) if isinstance(self.bias, str) else self.bias

    def ties_to(self, config: ModelConfig) -> str | None:
        """The attribute whose tensors this parameter shares instead of having its own."""
        return None

    def shards(self, prefix: str, config: ModelConfig, tp: TpGroup) -> dict[str, list[Shard]]:
        """By kind: the checkpoint tensors that, cut and stacked along dim 0, make this rank's tensor of that kind."""
        raise NotImplementedError

    def stored_bytes(self, prefix: str, config: ModelConfig, placement: Placement) -> int:
        """Bytes of this rank's tensors, in the model's dtype."""
        shards = self.shards(prefix, config, placement.tp)
        elements = sum(math.prod(shard.held_shape) for kind in shards.values() for shard in kind)
        return elements * placement.dtype.itemsize

    def load(self, prefix: str, config: ModelConfig, placement: Placement, source: WeightSource) -> dict[str, Tensor]:
        """This rank's tensors by kind; a kind of which it holds nothing is absent."""
        loaded = {}
        for kind, shards in self.shards(prefix, config, placement.tp).items():
            parts = [
                source.read(shard.name, shard.index, dtype=placement.dtype, device=placement.device)
                for shard in shards
                if shard.index is not None
            ]
            if parts:
                loaded[kind] = self.arrange(parts, config, placement.tp)
        return loaded

    def arrange(self, parts: list[Tensor], config: ModelConfig, tp: TpGroup) -> Tensor:
        """The stored tensor, with memory of its own, from what was read."""
        return stacked(parts)

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> PlacedT:
        """The callable form of the loaded tensors."""
        raise NotImplementedError


def stacked(parts: list[Tensor]) -> Tensor:
    """The parts one below the other, in memory of their own."""
    if len(parts) == 1:
        return parts[0].clone()
    if parts[0].is_meta:  # `cat` there imports torch's compiler, which takes seconds
        return parts[0].new_empty(sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.cat(parts)


def size_of(config: ModelConfig, name: str) -> int:
    """The config entry `name`; ModelFormatError when the checkpoint's config does not have it."""
    if config.get(name) is None:
        raise ModelFormatError(f"config.json: {name} is missing")
    size: int = config[name]
    return size


def require_divides(name: str, value: int, tp: TpGroup) -> None:
    """ConfigError unless `value` divides by the ranks."""
    if value % tp.size:
        nearest = max(size for size in range(1, tp.size) if value % size == 0)
        raise ConfigError(
            f"{name}={value} does not divide by {tp.size} ranks; the nearest number of ranks that works is {nearest}",
            hint="tensor_parallel_size sets it",
        )


def share(name: str, size: int, tp: TpGroup) -> slice:
    """This rank's part of `size`, the config entry `name`."""
    require_divides(name, size, tp)
    part = size // tp.size
    return slice(tp.rank * part, (tp.rank + 1) * part)


def whole(*shape: int) -> Index:
    """The index of all of a tensor of that shape."""
    return tuple(slice(0, size) for size in shape)
