"""Memory that the ranks of a group write into one another's."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

# The bytes of an element that has not arrived are all ones: a NaN that no arithmetic makes.
EMPTY = -1
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class PeerMemory:
    """This rank's view of the group's memory, [2, size, rows, row_bytes] on every rank, all EMPTY at the start.

    A row is a channel of its own, and its two halves take turns: in its n-th collective, rank s writes into half n % 2,
    part s of the others' memory. Every element says by itself whether it has arrived, so that no order of writes is
    needed; who has read an element empties it again. A rank that is done with collective n + 1 of a row has heard of
    all ranks that they were done with n, so it may write into that half again. As the turn lies in device memory, a
    replayed graph goes on where the last call ended.

    Attributes:
        rank, size: of the group.
        row_bytes: of a row, a multiple of 16.
        addresses: int64 [size + 1] on the device: of each rank's memory, then of an int32 that is not zero once the
            group has failed.
        turns: int32 [rows] on the device, the half of each row's next collective.
    """

    rank: int
    size: int
    row_bytes: int
    addresses: Tensor
    turns: Tensor

    @property
    def num_rows(self) -> int:
        return self.turns.shape[0]

    @staticmethod
    def num_bytes(size: int, num_rows: int, row_bytes: int) -> int:
        """Of one rank's memory."""
        return 2 * size * num_rows * row_bytes

    def fits(self, num_rows: int, row_bytes: int) -> bool:
        return num_rows <= self.num_rows and row_bytes <= self.row_bytes

    def holds(self, x: Tensor) -> bool:
        """Whether x can be summed: [rows, n] of floats."""
        if x.dim() != 2 or x.dtype not in BITS or x.stride(1) != 1:
            return False
        return self.fits(x.shape[0], x.shape[1] * x.itemsize)

    def host_view(self, rank: int, dtype: torch.dtype) -> Tensor:
        """[2, size, rows, elements of a row], the memory of that rank, which lies on the host."""
        shape = (2, self.size, self.num_rows, self.row_bytes // dtype.itemsize)
        size = self.num_bytes(self.size, self.num_rows, self.row_bytes)
        memory = (ctypes.c_char * size).from_address(int(self.addresses[rank]))
        return torch.frombuffer(memory, dtype=dtype).view(shape)
