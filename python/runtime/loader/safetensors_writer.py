"""Writes safetensors tensor by tensor: one is in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .checkpoint import INDEX_NAME, SINGLE_NAME
from .safetensors_header import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor by what its header entry says; `read` makes its values, on the CPU and of this dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: Path, tensors: Sequence[TensorToWrite], max_shard_bytes: int, written: Callable[[TensorToWrite], None]
) -> int:
    """Writes the tensors in their order into model.safetensors, or into shards with an index; returns how many files.

    Args:
        folder: exists, and holds none of these files.
        tensors: all of them.
        max_shard_bytes: no file has more bytes of tensors, but for a tensor that is larger alone.
        written: called after each tensor.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = [SINGLE_NAME] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards):
        _write_file(folder / name, shard, written)
    if len(shards) > 1:
        _write_index(folder, names, shards)
    return len(shards)


def _shards(tensors: Sequence[TensorToWrite], max_bytes: int) -> list[list[TensorToWrite]]:
    shards: list[list[TensorToWrite]] = [[]]
    num_bytes = 0
    for tensor in tensors:
        if shards[-1] and num_bytes + tensor.num_bytes > max_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(tensor)
        num_bytes += tensor.num_bytes
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _write_file(path: Path, tensors: Sequence[TensorToWrite], written: Callable[[TensorToWrite], None]) -> None:
    with path.open("xb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            _write_values(file, tensor.read())
            written(tensor)
        file.flush()
        os.fsync(file.fileno())  # the folder gets its name once all of it is there


def _write_values(file: BinaryIO, values: Tensor) -> None:
    if values.numel():  # an empty tensor has no bytes to view
        file.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)


def _header(tensors: Sequence[TensorToWrite]) -> bytes:
    """Its length and the JSON, padded so that the tensors begin at a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.num_bytes
        shape = list(tensor.shape)
        entries[tensor.name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_index(folder: Path, names: Sequence[str], shards: Sequence[Sequence[TensorToWrite]]) -> None:
    weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
    total = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
