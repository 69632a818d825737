"""Random weights of the right shapes, for runs that need no real ones."""

import math
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
        self._scratch: Tensor | None = None
        self.tensors = {name: TensorInfo(Path(), torch.float32, shape, 0, 0) for name, (shape, _) in tensors.items()}

    def name_of(self, declared: str) -> str:
        return declared

    def read(self, declared: str, index: tuple[slice, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape, mean = self._declared[declared]
        if device.type == "meta":
            held = [len(range(*part.indices(size))) for part, size in zip(index, shape)]
            return torch.empty(held, dtype=dtype, device=device)
        # torch's CPU generator takes 32 bits of a seed.
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{self._seed} {declared}".encode()))
        return self._whole(shape, dtype, device).normal_(mean, STD, generator=generator)[index].clone()

    def _whole(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a whole tensor, always the same: a rank keeps a part, and what the allocator reserved for the rest
        could not be given back once weights lie in it."""
        if self._scratch is None or (self._scratch.dtype, self._scratch.device) != (dtype, device):
            largest = max(math.prod(shape) for shape, _ in self._declared.values())
            self._scratch = torch.empty(largest, dtype=dtype, device=device)
        return self._scratch[: math.prod(shape)].view(shape)
