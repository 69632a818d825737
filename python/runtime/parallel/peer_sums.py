"""Small sums over memory that the GPUs of a group write into one another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import Communicator, PeerBuffers
from ..errors import ConfigError
from ..kernels.peer_memory import PeerMemory
from ..kernels.tile_config import AllReduceLimits, all_reduce_limits
from ..log import get_logger

ALIGNMENT = 16  # bytes of a row: what a thread reads at once

log = get_logger(__name__)


@dataclass(frozen=True)
class PeerSums:
    """The memory, its owner, and what goes which way; the same on every rank."""

    buffers: PeerBuffers
    memory: PeerMemory
    limits: AllReduceLimits

    def take(self, x: Tensor) -> bool:
        """Whether x is summed here."""
        return (
            x.is_cuda
            and x.nbytes <= max(self.limits.one_shot_bytes, self.limits.two_shot_bytes)
            and self.memory.holds(x)
        )

    def two_shot(self, x: Tensor) -> bool:
        """Whether the owner of a row adds it and sends the sum, rather than every rank adding every row."""
        return x.nbytes > self.limits.one_shot_bytes


def open_peer_sums(communicator: Communicator, device: torch.device, num_rows: int, row_bytes: int) -> PeerSums | None:
    """Memory for sums of `num_rows` rows, or None where ranks cannot reach each other's; a call of all ranks."""
    size = communicator.size
    limits = all_reduce_limits(device, size)
    if max(limits.one_shot_bytes, limits.two_shot_bytes) == 0:
        return None
    row_bytes = -(-row_bytes // ALIGNMENT) * ALIGNMENT
    with torch.cuda.device(device):
        turns = torch.zeros(num_rows, dtype=torch.int32, device=device)  # also makes the device's context current
        try:
            buffers = PeerBuffers(communicator, PeerMemory.num_bytes(size, num_rows, row_bytes))
        except ConfigError as e:
            log.warning("small sums go through NCCL, for the GPUs cannot write to each other's memory: %s", e)
            return None
    addresses = torch.tensor([*buffers.addresses, buffers.abort_word], dtype=torch.int64, device=device)
    return PeerSums(buffers, PeerMemory(communicator.rank, size, row_bytes, addresses, turns), limits)
