"""A model folder whose weights are files of `torch.save`, for those who convert it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFormatError
from .checkpoint import Checkpoint, dropped_prefix, sharded_tensors
from .model_folder import check_model_folder, file_in_folder
from .torch_file import StoredTensor, read_torch_file

INDEX_NAME = "pytorch_model.bin.index.json"
PATTERN = "pytorch_model*.bin"


class TorchCheckpoint:
    """As `Checkpoint`, of pytorch_model.bin or its shards.

    Args:
        model_dir: the folder.
        optional_prefix: as for `Checkpoint`.

    Attributes:
        tensors: every tensor by its name in the files.
    """

    def __init__(self, model_dir: str | Path, *, optional_prefix: str = "") -> None:
        self.tensors = _all_tensors(check_model_folder(model_dir))
        self._dropped_prefix = dropped_prefix(self.tensors, optional_prefix)

    def name_of(self, declared: str) -> str:
        """A declared name as this checkpoint spells it."""
        return declared.removeprefix(self._dropped_prefix)

    def read(self, declared: str, index: tuple[slice, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The part `index` (a slice a dimension) of a tensor; all of its bytes are read."""
        return self.tensors[self.name_of(declared)].read()[index].to(device=device, dtype=dtype)


def open_weights(model_dir: str | Path, *, optional_prefix: str = "") -> Checkpoint | TorchCheckpoint:
    """The weights of a folder: its safetensors, or where it has none its pytorch_model*.bin."""
    folder = check_model_folder(model_dir)
    if any(folder.glob("*.safetensors")) or not any(folder.glob(PATTERN)):
        return Checkpoint(folder, optional_prefix=optional_prefix)
    return TorchCheckpoint(folder, optional_prefix=optional_prefix)


def _all_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / INDEX_NAME).exists():
        return sharded_tensors(folder, INDEX_NAME, read_torch_file)
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob(PATTERN)):
        for name, info in read_torch_file(file_in_folder(folder, path.name)).items():
            if name in tensors:
                raise ModelFormatError(f"tensor {name} stands in {tensors[name].path.name} and in {path.name}")
            tensors[name] = info
    return tensors
