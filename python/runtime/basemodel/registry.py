"""Finds the class of a `model_type`: models/<model_type>.py, or what was registered."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import ConfigError, ModelFormatError, shorten
from ..loader import TensorInfo, check_model_folder
from ..loader.model_folder import read_json
from ..parallel import TpGroup
from .base_model import TpPartBaseModel
from .weights import BaseLayerWeight, dummy_tensors, verify_load
from .weights.param import WeightSource

ModelClass = TypeVar("ModelClass", bound=type[TpPartBaseModel])

_registered: dict[str, type[TpPartBaseModel]] = {}


def register_model(model_type: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: checkpoints whose config.json says `model_type` are run by this class.

    For families outside this package it is enough that their module was imported. A later registration replaces an
    earlier one.
    """

    def register(model_class: ModelClass) -> ModelClass:
        _registered[model_type] = model_class
        return model_class

    return register


def _built_in() -> set[str]:
    folder = importlib.import_module("runtime.models").__path__
    return {module.name for module in pkgutil.iter_modules(folder)}


def known_model_types() -> list[str]:
    """Every `model_type` that `model_class` finds, sorted."""
    return sorted(_built_in() | set(_registered))


def model_class(model_type: str) -> type[TpPartBaseModel]:
    """The class of a `model_type`; ModelFormatError with the known ones."""
    if model_type not in _registered and model_type in _built_in():
        importlib.import_module(f"runtime.models.{model_type}")
    if model_type in _registered:
        return _registered[model_type]
    known = known_model_types()
    nearest = difflib.get_close_matches(model_type, known, n=1)
    raise ModelFormatError(
        f"config.json: model_type {shorten(model_type)} is unknown; known: {', '.join(known)}",
        hint=f"nearest: {nearest[0]}" if nearest else "",
    )


def model_class_of(model_dir: str | Path) -> type[TpPartBaseModel]:
    """The class that runs the model of a folder, from its config.json."""
    model_type = read_json(check_model_folder(model_dir), "config.json").get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError("config.json has no model_type")
    return model_class(model_type)


class GroupOfShapes(TpGroup):
    """Rank 0 of any size, for a model on the meta device: its results have the right shapes and no values."""

    def __init__(self, size: int, *, overlaps: bool = False) -> None:
        self.size, self.overlaps = size, overlaps

    def all_gather(self, x: Tensor) -> Tensor:
        return x if self.size == 1 else x.new_empty(*x.shape[:-1], x.shape[-1] * self.size)


def tp_sizes(model_dir: str | Path, largest: int = 16) -> list[int]:
    """Numbers of ranks, up to `largest`, over which the model of a folder can be split; reads no weight."""
    family, found = model_class_of(model_dir), []
    for size in range(1, largest + 1):
        try:
            family(0, size, model_dir, 16, tp_group=GroupOfShapes(size), device="meta", load_format="dummy")
        except ConfigError:
            continue
        found.append(size)
    return found


def needed_tensors(model_dir: str | Path, source: WeightSource) -> dict[str, TensorInfo]:
    """The tensors of `source` that the model of a folder reads, in its order, by the names it declares.

    Raises:
        ModelFormatError: every missing, unused and mis-shaped tensor.
    """
    model = model_class_of(model_dir)(0, 1, model_dir, 16, device="meta", load_format="dummy")
    layers: list[BaseLayerWeight] = [model.pre_post_weight, *model.trans_layers_weight]
    verify_load(layers, source, model.ignored_tensors)
    return {name: source.tensors[source.name_of(name)] for name in dummy_tensors(layers)}


def load_model(
    model_dir: str | Path,
    *,
    max_total_token_num: int,
    tp_rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> TpPartBaseModel:
    """One rank's part of the model of a folder; `options` are the keyword arguments of `TpPartBaseModel`."""
    return model_class_of(model_dir)(tp_rank, world_size, model_dir, max_total_token_num, **options)
