"""The CPU tier of the KV cache: copies whole blocks between the device's pool and host memory, as StepPlans say.

The scheduler plans a copy only when no step in flight touches either end, and uses neither end before it is told that
the copy is done. So copies wait for nothing, and nothing waits for them but the scheduler.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from runtime.errors import CapacityError
from runtime.kernels import ops
from runtime.kernels import step_plan as sp

Words = npt.NDArray[np.int32]

_MAX_PAIRS = 1 << 14  # pieces that one kernel copies
_NUM_PAIR_BUFFERS = 8
_UNPIN_TIMEOUT_S, _UNPIN_POLL_S = 10.0, 1e-3
_abandoned: list[torch.Tensor] = []


class KvTier(Protocol):
    """Called by the engine thread alone."""

    host: torch.Tensor

    def start(self, step: int, copies: Words) -> None:
        """Starts a plan's `copies`, int32 [n, 3]: kind, source block, destination block."""

    def take_done(self) -> list[int]:
        """Steps whose copies have finished since the last call."""

    def catch_up(self) -> None:
        """What is launched from now on runs behind the copies so far: of a rank whose scheduler looks at rank 0's."""

    @property
    def is_busy(self) -> bool:
        """Whether copies are under way, or done and not yet taken."""


class BlockCopier:
    """Both pools as one list of pieces each: a block is one piece in every layer, for keys and for values.

    Args:
        kv_cache: [layers, 2, num_blocks + 1, ...], contiguous; block b is piece b of each plane.
        host: [layers, 2, num_host_blocks, ...], of the same dtype; host block b is piece b - 1 of each plane.
    """

    def __init__(self, kv_cache: torch.Tensor, host: torch.Tensor) -> None:
        assert kv_cache.shape[3:] == host.shape[3:] and kv_cache.dtype == host.dtype
        self._device_pieces, self._host_pieces = kv_cache.flatten(0, 2), host.flatten(0, 2)
        planes = np.arange(kv_cache.shape[0] * 2, dtype=np.int64)[:, None]
        self._device_base, self._host_base = planes * kv_cache.shape[2], planes * host.shape[2] - 1

    def pairs(self, copies: Words) -> list[tuple[bool, Words]]:
        """(whether to the host, (source piece, destination piece) int32 [n, 2]) for each direction that occurs."""
        found = []
        for to_host, kind in ((True, sp.COPY_TO_HOST), (False, sp.COPY_FROM_HOST)):
            chosen = copies[copies[:, 0] == kind]
            if len(chosen):
                bases = (self._device_base, self._host_base) if to_host else (self._host_base, self._device_base)
                ends = [(chosen[:, i + 1] + bases[i]).reshape(-1) for i in (0, 1)]
                found.append((to_host, np.stack(ends, axis=1).astype(np.int32)))
        return found

    def copy(self, to_host: bool, pairs: torch.Tensor) -> None:
        """Runs on the device of `pairs`; on CUDA on the current stream."""
        ends = (self._device_pieces, self._host_pieces)
        ops.copy_blocks(*(ends if to_host else ends[::-1]), pairs)


class MemcpyTier:
    """CPU: a copy is done when it has started."""

    def __init__(self, kv_cache: torch.Tensor, num_host_blocks: int) -> None:
        self.host = torch.empty(_host_shape(kv_cache, num_host_blocks), dtype=kv_cache.dtype)
        self._copier = BlockCopier(kv_cache, self.host)
        self._done: list[int] = []

    def start(self, step: int, copies: Words) -> None:
        for to_host, pairs in self._copier.pairs(copies):
            self._copier.copy(to_host, torch.from_numpy(pairs))
        self._done.append(step)

    def take_done(self) -> list[int]:
        done, self._done = self._done, []
        return done

    def catch_up(self) -> None:
        self._done.clear()

    @property
    def is_busy(self) -> bool:
        return bool(self._done)


class CudaTier:
    """CUDA: pinned host memory that kernels on a stream of their own read and write; an event for each plan.

    Raises:
        CapacityError: the system pins no more memory.
    """

    def __init__(self, kv_cache: torch.Tensor, num_host_blocks: int) -> None:
        self.host = torch.empty(_host_shape(kv_cache, num_host_blocks), dtype=kv_cache.dtype)
        _pin(self.host)
        self._copier = BlockCopier(kv_cache, self.host)
        self._stream = torch.cuda.Stream(kv_cache.device)  # type: ignore[no-untyped-call]
        self._unpin = weakref.finalize(self, _unpin, self.host, self._stream)
        # one is enough: the stream orders the next pairs behind the kernel that reads these
        self._device_pairs = torch.empty((_MAX_PAIRS, 2), dtype=torch.int32, device=kv_cache.device)
        # pinned, each in use until its plan's event; made beforehand, since pinning memory can hold up the device
        self._free_pairs = [_pinned_pairs() for _ in range(_NUM_PAIR_BUFFERS)]
        self._under_way: deque[tuple[int, torch.cuda.Event, list[torch.Tensor]]] = deque()
        self._warm_up()

    def start(self, step: int, copies: Words) -> None:
        used: list[torch.Tensor] = []
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            for to_host, pairs in self._copier.pairs(copies):
                for at in range(0, len(pairs), _MAX_PAIRS):
                    used.append(self._launch(to_host, pairs[at : at + _MAX_PAIRS]))
            event.record(self._stream)
        self._under_way.append((step, event, used))

    def _launch(self, to_host: bool, pairs: Words) -> torch.Tensor:
        """Queues one kernel; the pinned pairs that it uses."""
        pinned = self._free_pairs.pop() if self._free_pairs else _pinned_pairs()
        pinned[: len(pairs)] = torch.from_numpy(pairs)
        on_device = self._device_pairs[: len(pairs)]
        on_device.copy_(pinned[: len(pairs)], non_blocking=True)
        self._copier.copy(to_host, on_device)
        return pinned

    def take_done(self) -> list[int]:
        done = []
        while self._under_way and self._under_way[0][1].query():  # type: ignore[no-untyped-call]
            step, _, used = self._under_way.popleft()
            self._free_pairs += used
            done.append(step)
        return done

    def catch_up(self) -> None:
        self.take_done()
        if self._under_way:
            torch.cuda.current_stream().wait_stream(self._stream)

    @property
    def is_busy(self) -> bool:
        return bool(self._under_way)

    def _warm_up(self) -> None:
        """Compiles both directions: block 0, which is nobody's, goes to the host and back."""
        torch.cuda.synchronize(self._device_pairs.device)
        for entry in ((sp.COPY_TO_HOST, 0, 1), (sp.COPY_FROM_HOST, 1, 0)):
            self.start(0, np.array([entry], np.int32))
        self._stream.synchronize()
        self.take_done()


def make_tier(kv_cache: torch.Tensor, num_host_blocks: int) -> KvTier | None:
    """The tier of this pool; None without host blocks."""
    if num_host_blocks == 0:
        return None
    if kv_cache.is_cuda:
        return CudaTier(kv_cache, num_host_blocks)
    return MemcpyTier(kv_cache, num_host_blocks)


def _host_shape(kv_cache: torch.Tensor, num_host_blocks: int) -> tuple[int, ...]:
    return (*kv_cache.shape[:2], num_host_blocks, *kv_cache.shape[3:])


def _pinned_pairs() -> torch.Tensor:
    return torch.empty((_MAX_PAIRS, 2), dtype=torch.int32, pin_memory=True)


def _pin(tensor: torch.Tensor) -> None:
    # registered where it lies: torch's own pinned allocator rounds up to a power of two
    error = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))  # type: ignore[no-untyped-call]
    if error != 0:
        raise CapacityError(
            f"cpu_kv_bytes: {tensor.nbytes} bytes of host memory cannot be pinned (CUDA error {error})",
            hint="lower cpu_kv_bytes, or raise the limit of locked memory (ulimit -l)",
        )


def _unpin(tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Once no kernel uses it. What a stream that hangs may still write is never given back."""
    deadline = time.monotonic() + _UNPIN_TIMEOUT_S
    while not stream.query():
        if time.monotonic() > deadline:
            _abandoned.append(tensor)
            return
        time.sleep(_UNPIN_POLL_S)
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())  # type: ignore[no-untyped-call]
