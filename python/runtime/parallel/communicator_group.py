"""A group of several processes."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from .._core import Communicator, DataType, PeerCopies
from ..errors import CommunicatorError, ConfigError
from ..kernels import ops
from ..log import get_logger
from . import copied_sums
from .copied_sums import CopiedSums
from .peer_sums import PeerSums, open_peer_sums
from .side_stream import SideStream, SumOnTheSide
from .tp_group import PendingSum, TpGroup

log = get_logger(__name__)

DATA_TYPES = {
    torch.float32: DataType.FLOAT32,
    torch.bfloat16: DataType.BFLOAT16,
    torch.float16: DataType.FLOAT16,
    torch.int32: DataType.INT32,
}
POLL_INTERVAL_S = 0.0005


class CommunicatorGroup(TpGroup):
    """A TpGroup over a `_core.Communicator`.

    Args:
        communicator: has joined its group.
        device: where this rank's tensors are.
        timeout_s: how long `barrier` waits for the other ranks.
        deterministic: sums are added in rank order in float32 at every size, as shared memory does anyway.
        overlap: how sums that are started go on beside the computation: "none", "nccl" or "copy". The answers of a
            deterministic group do not depend on it.
    """

    def __init__(
        self,
        communicator: Communicator,
        device: torch.device,
        timeout_s: float,
        *,
        deterministic: bool = False,
        overlap: str = "none",
    ) -> None:
        self.rank, self.size = communicator.rank, communicator.size
        self._open: Communicator | None = communicator
        self._device, self._timeout_s = device, timeout_s
        self._reserved: list[PeerSums] = []  # the last is in use; captured graphs may still hold an earlier one
        self.overlaps, self._overlap = overlap != "none", overlap
        self._side: SideStream | None = None
        self._copies: PeerCopies | None = None
        self._copied_sums: CopiedSums | None = None
        self._all_reduce = self._gathered_sum if deterministic and device.type == "cuda" else self._sum

    def all_reduce(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        if (peers := self.peers) is not None and peers.take(x):
            return ops.all_reduce(x, peers.memory, two_shot=peers.two_shot(x), out=x)
        return self._all_reduce(x.contiguous())

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        if (peers := self.peers) is None or not peers.take(x):
            return super().all_reduce_norm(x, residual, weight, bias, eps)
        self.num_calls += 1
        return ops.all_reduce_norm(x, residual, weight, bias, eps, peers.memory, two_shot=peers.two_shot(x), out=x)

    def start_sum(self, x: Tensor) -> PendingSum:
        if not self.overlaps or self._device.type == "cpu":
            return super().start_sum(x)
        self.num_calls += 1
        x = x.contiguous()
        if self._copied_sums is not None and self._copied_sums.fits(x):
            return self._copied_sums.start(x)
        side = self._side = self._side or SideStream(self._device)
        side.follow()
        self._sum(x, side.handle)
        return SumOnTheSide(x, side.mark())

    def all_gather(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return self._gathered(x.contiguous()).movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        self.num_calls += 1
        x = x.contiguous()
        self._communicator.broadcast(x.data_ptr(), x.numel(), _data_type(x), root, self._stream())
        return x

    def barrier(self) -> None:
        if self._device.type == "cuda":
            self._wait_for_device()
        self._communicator.barrier()

    def reserve(self, num_rows: int, row_bytes: int) -> None:
        if self._device.type == "cpu" or (self.peers is not None and self.peers.memory.fits(num_rows, row_bytes)):
            return
        if (peers := open_peer_sums(self._communicator, self._device, num_rows, row_bytes)) is not None:
            self._reserved.append(peers)

    def reserve_overlap(self, num_rows: int, row_bytes: int) -> None:
        if self._overlap != "copy" or self._device.type == "cpu":
            return
        shape = (copied_sums.NUM_SLOTS, self.size, copied_sums.part_bytes(num_rows, row_bytes))
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().synchronize()  # makes the device's context current
            try:
                self._copies = PeerCopies(self._communicator, copied_sums.num_words(self.size), math.prod(shape))
            except ConfigError as e:
                log.warning("sums are made by NCCL, for the GPUs cannot write to each other's memory: %s", e)
                return
            memory = copied_sums.device_bytes(self._copies.address, shape, self._device)
            self._copied_sums = CopiedSums(self._copies, self.rank, self.size, memory, SideStream(self._device))

    @property
    def peers(self) -> PeerSums | None:
        """What `reserve` made; None: nothing, NCCL sums at every size."""
        return self._reserved[-1] if self._reserved else None

    def poll(self) -> None:
        self._communicator.poll()

    def abort(self, cause: str) -> None:
        if (communicator := self._open) is not None:
            communicator.abort(cause)

    def close(self) -> None:
        self._open = None
        self._copied_sums = self._copies = None
        self._reserved.clear()

    @property
    def _communicator(self) -> Communicator:
        if self._open is None:
            raise CommunicatorError(f"rank {self.rank} has closed its group")
        return self._open

    def _stream(self) -> int:
        if self._device.type == "cpu":
            return 0
        handle: int = torch.cuda.current_stream(self._device).cuda_stream
        return handle

    def _sum(self, x: Tensor, stream: int | None = None) -> Tensor:
        address, stream = x.data_ptr(), self._stream() if stream is None else stream
        self._communicator.all_reduce(address, address, x.numel(), _data_type(x), stream)
        return x

    def _gathered(self, x: Tensor) -> Tensor:
        """x of every rank, [size, *x.shape]."""
        out = x.new_empty(self.size, *x.shape)
        self._communicator.all_gather(x.data_ptr(), out.data_ptr(), x.numel(), _data_type(x), self._stream())
        return out

    def _gathered_sum(self, x: Tensor) -> Tensor:
        parts = self._gathered(x)
        total = parts[0].to(torch.float32 if x.is_floating_point() else x.dtype)
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def _wait_for_device(self) -> None:
        """Until what was queued is done; never inside CUDA, where a rank that died would hold this one."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        deadline = time.monotonic() + self._timeout_s
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                self.abort(f"rank {self.rank} has waited {self._timeout_s:g} s for its device at a barrier")
            self.poll()
            time.sleep(POLL_INTERVAL_S)


def _data_type(x: Tensor) -> DataType:
    if x.dtype not in DATA_TYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DATA_TYPES)
        raise ConfigError(f"a collective of {str(x.dtype).removeprefix('torch.')} was asked for; possible: {names}")
    return DATA_TYPES[x.dtype]
