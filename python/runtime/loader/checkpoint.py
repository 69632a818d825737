"""The tensors of a model folder, read in slices."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelFormatError
from ..start_timer import StartTimer
from .model_folder import check_model_folder, file_in_folder, read_json
from .safetensors_header import TensorInfo, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
READING, COPYING = "weights", "device_copy"  # phases of a start
InfoT = TypeVar("InfoT", bound=TensorInfo)
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class Checkpoint:
    """The safetensors of a folder, one file or shards with an index.

    Args:
        model_dir: the folder.
        optional_prefix: some checkpoints of a family name their tensors without it. Where no tensor here has it, names
            asked for lose it.
        timer: of the start, to tell reading from copying to the device.

    Attributes:
        tensors: every tensor by its name in the files.
        bytes_read: bytes asked for so far.
    """

    def __init__(self, model_dir: str | Path, *, optional_prefix: str = "", timer: StartTimer | None = None) -> None:
        folder = check_model_folder(model_dir)
        self.tensors = _all_tensors(folder)
        self.bytes_read = 0
        self._dropped_prefix = dropped_prefix(self.tensors, optional_prefix)
        self._files: dict[Path, Any] = {}
        self._timer = timer or StartTimer(READING)

    def name_of(self, declared: str) -> str:
        """A declared name as this checkpoint spells it."""
        return declared.removeprefix(self._dropped_prefix)

    def read(self, declared: str, index: tuple[slice, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The part `index` (a slice a dimension) of a tensor; only its bytes are read, none for the meta device."""
        name = self.name_of(declared)
        info = self.tensors[name]
        if device.type == "meta":
            return torch.empty(info.shape, dtype=dtype, device=device)[index]
        part: Tensor = self._open(info.path).get_slice(name)[index]
        self.bytes_read += part.numel() * part.element_size()
        self._timer.enter(COPYING)
        placed = part.to(device=device, dtype=dtype)
        self._timer.enter(READING)
        return placed

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(str(path), framework="pt")
            except SafetensorError as error:  # stricter about numbers than Python's JSON, or the file has changed
                raise ModelFormatError(f"{path.name}: {error}") from None
        return self._files[path]


def dropped_prefix(names: Iterable[str], optional_prefix: str) -> str:
    """What names asked for lose: the prefix where no name of the files has it."""
    return "" if any(name.startswith(optional_prefix) for name in names) else optional_prefix


def _all_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / INDEX_NAME).exists():
        return sharded_tensors(folder, INDEX_NAME, read_header)
    if (folder / SINGLE_NAME).exists():
        return read_header(file_in_folder(folder, SINGLE_NAME))
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        _refuse_without_safetensors(folder)
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        for tensor, info in read_header(file_in_folder(folder, name)).items():
            if tensor in tensors:
                raise ModelFormatError(f"tensor {tensor} stands in {tensors[tensor].path.name} and in {name}")
            tensors[tensor] = info
    return tensors


def _refuse_without_safetensors(folder: Path) -> None:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise ModelFormatError(
            f"{folder} has no safetensors; {pickled[0]} is not read, because such files can run code when opened",
            hint="`runtime convert SRC DST` makes safetensors of it without running any",
        )
    raise ModelFormatError(f"{folder} has no safetensors", hint="load_format='dummy' runs with random weights")


def sharded_tensors(folder: Path, index_name: str, read: Callable[[Path], Mapping[str, InfoT]]) -> dict[str, InfoT]:
    """The tensors of the files that an index names, each of which `read` opens; both must name the same ones."""
    weight_map = read_json(folder, index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFormatError(f"{index_name} has no weight_map from tensor names to file names")
    headers = {name: read(file_in_folder(folder, name)) for name in sorted(set(weight_map.values()))}
    absent = [
        f"{file} lacks tensor {name} of {index_name}" for name, file in weight_map.items() if name not in headers[file]
    ]
    unlisted = [
        f"{index_name} lacks tensor {name} of {file}"
        for file, header in headers.items()
        for name in header
        if weight_map.get(name) != file
    ]
    if absent or unlisted:
        raise ModelFormatError(absent + unlisted)
    return {name: headers[file][name] for name, file in weight_map.items()}
