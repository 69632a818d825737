"""Large sums over GPUs by their copy engines, which take no multiprocessor from what computes meanwhile.

Every rank copies its summand into the memory of the others, and the norm that needs the sum adds the parts in rank
order. Of two ranks that moves the bytes of a ring; of n, n / 2 times as many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels import ops
from .side_stream import SideStream
from .tp_group import PendingSum

NUM_SLOTS = 2  # sums under way at once
ALIGNMENT = 256  # bytes, of a part
_ARRIVED, _READ = 0, 1  # kinds of words: the part of a rank is there; a rank has read this one's


class Copies(Protocol):
    """`_core.PeerCopies`."""

    def copy(self, rank: int, offset: int, source: int, num_bytes: int, stream: int) -> None:
        """Queues a copy of `num_bytes` from the address `source` to `offset` in the memory of `rank`."""

    def write(self, rank: int, word: int, value: int, stream: int) -> None:
        """Queues writing an int32 into a word of `rank`, behind what the stream was given before."""

    def wait(self, word: int, value: int, stream: int) -> None:
        """What `stream` is given from now on waits until this rank's word has come to `value`."""


def num_words(size: int) -> int:
    """Words that the group needs on each rank."""
    return 2 * NUM_SLOTS * size


def num_bytes(size: int, num_rows: int, row_bytes: int) -> int:
    """On each rank, for sums of `num_rows` rows."""
    return NUM_SLOTS * size * part_bytes(num_rows, row_bytes)


def part_bytes(num_rows: int, row_bytes: int) -> int:
    """Bytes of one rank's summand, rounded up to ALIGNMENT."""
    return -(-num_rows * row_bytes // ALIGNMENT) * ALIGNMENT


class CopiedSums:
    """One rank's end. Sums take turns at NUM_SLOTS slots; all ranks start them, and take them, in one order.

    The n-th use of a slot is announced by n in the words of the slot: the sender writes _ARRIVED behind its copy, the
    receiver _READ behind its norm, which the sender waits for before it copies the n + 1-st.

    Args:
        copies: with `num_words` words.
        memory: uint8 [NUM_SLOTS, size, bytes of a part], this rank's.
        side: where the copies are queued.
    """

    def __init__(self, copies: Copies, rank: int, size: int, memory: Tensor, side: SideStream) -> None:
        self._copies, self._rank, self._size, self._memory, self._side = copies, rank, size, memory, side
        self._others = [(rank + i) % size for i in range(1, size)]  # never all to one rank at once
        self._turn = 0

    def fits(self, x: Tensor) -> bool:
        """Whether x can be summed here; the same on every rank."""
        return x.dim() == 2 and x.is_contiguous() and x.nbytes <= self._memory.shape[2]

    def start(self, x: Tensor) -> PendingSum:
        """Queues the copies of x on the side stream; all ranks start the same sums in the same order."""
        use, slot = divmod(self._turn, NUM_SLOTS)
        self._turn += 1
        stream, offset = self._side.handle, (slot * self._size + self._rank) * self._memory.shape[2]
        self._side.follow()
        for peer in self._others:
            if use > 0:
                self._copies.wait(self._word(_READ, slot, peer), _int32(use - 1), stream)
            self._copies.copy(peer, offset, x.data_ptr(), x.nbytes, stream)
            self._copies.write(peer, self._word(_ARRIVED, slot, self._rank), _int32(use), stream)
        return _CopiedSum(x, partial(self._norm, x, slot, use, self._side.mark()))

    def _norm(self, x: Tensor, slot: int, use: int, wait_for_copies: Callable[[], None], *norm: Any) -> Tensor:
        wait_for_copies()  # what comes next may write to x
        stream = self._side.current
        for peer in self._others:
            self._copies.wait(self._word(_ARRIVED, slot, peer), _int32(use), stream)
        parts = self._memory[slot, :, : x.nbytes].view(x.dtype).view(self._size, *x.shape)
        out = ops.sum_norm(x, parts, self._rank, *norm, out=x)
        for peer in self._others:
            self._copies.write(peer, self._word(_READ, slot, self._rank), _int32(use), stream)
        return out

    def _word(self, kind: int, slot: int, rank: int) -> int:
        return (kind * NUM_SLOTS + slot) * self._size + rank


class _CopiedSum(PendingSum):
    def __init__(self, x: Tensor, norm: Callable[..., Tensor]) -> None:
        super().__init__(x)
        self._norm = norm

    def norm(self, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        return self._norm(residual, weight, bias, eps)


def device_bytes(address: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Device memory that is not torch's, as uint8; the caller keeps it alive."""

    class Memory:
        __cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}

    return torch.as_tensor(Memory(), device=device)


def _int32(value: int) -> int:
    """Counts go round."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)
