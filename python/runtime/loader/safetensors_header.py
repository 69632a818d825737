"""The header of a safetensors file, checked: https://github.com/huggingface/safetensors#format."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelFormatError, shorten
from .model_folder import parse_json_object

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_NAME_LEN = 256
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are bytes from the end of the header."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _tensor_info(path: Path, entry: Any) -> TensorInfo | str:
    """The entry, or what is wrong with it."""
    if not (isinstance(entry, dict) and entry.keys() == _ENTRY_KEYS):
        return f"its entry is not an object of {', '.join(sorted(_ENTRY_KEYS))}"
    dtype, shape, offsets = DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        return f"its dtype {shorten(entry['dtype'])} is unknown"
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(map(_is_size, shape))):
        return "its shape is not a short list of sizes"
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        return "its data_offsets are not two sizes"
    start, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - start != needed:
        return f"shape {shape} of {entry['dtype']} needs {needed} bytes, but its data_offsets span {end - start}"
    return TensorInfo(path, dtype, tuple(shape), start, end)


def _layout_problems(found: dict[str, TensorInfo], data_bytes: int) -> list[str]:
    """The tensors must follow each other without a gap or an overlap, up to the end of the file."""
    problems, position, before = [], 0, "the header"
    for name, info in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            kind = "overlaps" if info.start < position else "leaves a gap after"
            problems.append(f"tensor {name} {kind} {before}")
        position, before = max(position, info.end), name
    if position != data_bytes:
        problems.append(f"the tensors need {position} bytes of data, the file has {data_bytes}: truncated or damaged")
    return problems


def _header_object(path: Path) -> tuple[dict[str, Any], int]:
    """The header and the number of bytes behind it."""
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        limit = min(MAX_HEADER_BYTES, file_bytes - 8)
        if limit < 0:
            raise ModelFormatError(f"{path.name} has {file_bytes} bytes, at least 8 are needed: truncated or damaged")
        if header_bytes > limit:
            raise ModelFormatError(
                f"{path.name}: a header of {header_bytes} bytes, but at most {limit} fit: truncated or damaged"
            )
        header = parse_json_object(file.read(header_bytes), f"the header of {path.name}")
    return header, file_bytes - 8 - header_bytes


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file by name; ModelFormatError with everything that is wrong."""
    header, data_bytes = _header_object(path)
    metadata = header.pop("__metadata__", {})
    problems = [
        f"tensor name {shorten(name)} is not up to {MAX_NAME_LEN} printable characters"
        for name in header
        if len(name) > MAX_NAME_LEN or not name.isprintable()
    ]
    checked = {name: _tensor_info(path, entry) for name, entry in header.items()} if not problems else {}
    problems += [f"tensor {name}: {problem}" for name, problem in checked.items() if isinstance(problem, str)]
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        problems.append("its __metadata__ is not an object of texts")
    found = {name: info for name, info in checked.items() if isinstance(info, TensorInfo)}
    if not problems:
        problems = _layout_problems(found, data_bytes)
    if problems:
        raise ModelFormatError([f"{path.name}: {problem}" for problem in problems])
    return found
