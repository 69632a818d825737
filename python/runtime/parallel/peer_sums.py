"""Small sums over memory that the GPUs of a group write into one another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import Communicator, PeerBuffers
from ..errors import ConfigError
from ..kernels.peer_memory import PeerMemory
from ..log import get_logger

# By number of ranks: bytes of x up to which its sum goes one-shot, and up to which two-shot. Larger ones, and those of
# more ranks, are NCCL's. Of two ranks as measured (docs/benchmarks/allreduce.jsonl), of more not yet.
LIMITS = {2: (4 << 20, 4 << 20), 4: (256 << 10, 4 << 20), 8: (128 << 10, 2 << 20)}
ALIGNMENT = 16  # bytes of a row: what a thread reads at once

log = get_logger(__name__)


@dataclass(frozen=True)
class PeerSums:
    """The memory, its owner, and what goes which way; the same on every rank."""

    buffers: PeerBuffers
    memory: PeerMemory
    one_shot_bytes: int
    two_shot_bytes: int

    def take(self, x: Tensor) -> bool:
        """Whether x is summed here."""
        return x.is_cuda and x.nbytes <= max(self.one_shot_bytes, self.two_shot_bytes) and self.memory.holds(x)

    def two_shot(self, x: Tensor) -> bool:
        return x.nbytes > self.one_shot_bytes


def open_peer_sums(communicator: Communicator, device: torch.device, num_rows: int, row_bytes: int) -> PeerSums | None:
    """Memory for sums of `num_rows` rows, or None where ranks cannot reach each other's; a call of all ranks."""
    size = communicator.size
    limits = next((limits for ranks, limits in sorted(LIMITS.items()) if size <= ranks), None)
    if limits is None:
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
    return PeerSums(buffers, PeerMemory(communicator.rank, size, row_bytes, addresses, turns), *limits)
