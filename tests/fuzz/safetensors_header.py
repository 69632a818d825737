"""A safetensors file is refused in words, or each of its tensors can be read and has the shape that was announced."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mutate
import torch

from runtime.errors import ModelFormatError
from runtime.loader import Checkpoint
from runtime.loader.safetensors_header import DTYPES


def make(folder: Path) -> Callable[[Random], None]:
    path = folder / "model.safetensors"

    def case(rng: Random) -> None:
        raw = draw(rng)
        path.write_bytes(raw)
        try:
            checkpoint = Checkpoint(folder)
        except ModelFormatError as error:
            check_words(error, folder)
            return
        try:
            check_tensors(checkpoint, len(raw))
        except ModelFormatError as error:
            assert b"-0" in raw  # zero to Python's JSON, a float to the library's
            check_words(error, folder)

    return case


def check_words(error: ModelFormatError, folder: Path) -> None:
    for problem in error.problems:
        assert "model.safetensors" in problem and str(folder) not in problem
        assert len(problem) < 500 and problem.isprintable()


def check_tensors(checkpoint: Checkpoint, file_bytes: int) -> None:
    for name, info in checkpoint.tensors.items():
        assert 0 <= info.start <= info.end <= file_bytes
        whole = (slice(None),) * len(info.shape)
        tensor = checkpoint.read(name, whole, dtype=torch.float32, device=torch.device("cpu"))
        assert tuple(tensor.shape) == info.shape


def draw(rng: Random) -> bytes:
    """A file of a few tensors, damaged somewhere."""
    header, num_bytes = _header(rng)
    for _ in range(rng.randrange(3)):
        header = mutate.json_of(header, rng)
    text = mutate.dump(header)
    if rng.random() < 0.4:
        text = mutate.bytes_of(text, rng)
    text += b" " * rng.randrange(9)
    length = len(text) if rng.random() < 0.9 else rng.choice((0, len(text) + 1, 2**31, 2**63, 2**64 - 1))
    whole = length.to_bytes(8, "little") + text + bytes(num_bytes)
    return whole if rng.random() < 0.9 else whole[: rng.randrange(len(whole) + 1)]


def _header(rng: Random) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    end = 0
    for i in range(rng.randrange(4)):
        dtype, shape = rng.choice(list(DTYPES)), [rng.randrange(4) for _ in range(rng.randrange(4))]
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[f"layer.{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return header, end
