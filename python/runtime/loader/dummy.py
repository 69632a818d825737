"""Random weights of the right shapes, for runs that need no real ones."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .safetensors_header import TensorInfo

STD = 0.02


class DummyCheckpoint:
    """Stands in for a `Checkpoint`: normal values of standard deviation STD around a mean given per tensor.

    A tensor depends on `seed`, its name and the device's kind only, so that ranks slice the same one. It is made on the
    device it is asked for.

    Args:
        tensors: (shape, mean) of every tensor by its name.
        seed: of all of them.
    """

    def __init__(self, tensors: Mapping[str, tuple[tuple[int, ...], float]], seed: int) -> None:
        self._declared = tensors
        self._seed = seed
        self.tensors = {name: TensorInfo(Path(), torch.float32, shape, 0, 0) for name, (shape, _) in tensors.items()}

    def name_of(self, declared: str) -> str:
        return declared

    def read(self, declared: str, index: tuple[slice, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape, mean = self._declared[declared]
        if device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=device)[index]
        # torch's CPU generator takes 32 bits of a seed.
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{self._seed} {declared}".encode()))
        return torch.empty(shape, dtype=dtype, device=device).normal_(mean, STD, generator=generator)[index]
