"""What an engine's start really took of the device, beside what was planned."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from runtime.engine.device import GIB, Device, is_out_of_memory
from runtime.engine.memory_plan import MemoryPlan
from runtime.errors import CapacityError
from runtime.log import get_logger

logger = get_logger(__name__)

_TOLERANCE = 0.02
_OWN_GROWTH = GIB // 2  # of what is not torch's: code and libraries of this process, which look like another's


@dataclass(frozen=True)
class MemoryUse:
    """Measured bytes, under the names of MemoryPlan."""

    weights: int
    kv_cache: int
    workspace: int
    graphs: int
    total: int


@dataclass(frozen=True)
class Memory:
    """The plan of an engine and what was measured when it was ready; on a CPU nothing is measured."""

    plan: MemoryPlan
    measured: MemoryUse | None


@dataclass(frozen=True)
class _Mark:
    in_use: int  # of the device, by whomever
    allocated: int  # by torch, for tensors


class MemoryMeter:
    """Reads the device's memory at the stages of a start: "planned", "loaded", "warm", "ready".

    Args:
        device: as it was before anything was allocated.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._marks: dict[str, _Mark] = {}
        if device.kind == "cuda":
            self._marks["planned"] = _Mark(device.used_bytes, torch.cuda.memory_allocated())

    def mark(self, stage: str) -> None:
        """Reads the device at the end of a stage; waits for it."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize()
            if stage == "loaded":  # what loading needed in passing
                torch.cuda.empty_cache()
            self._marks[stage] = _Mark(_in_use(), torch.cuda.memory_allocated())

    @contextmanager
    def guard(self, plan: MemoryPlan) -> Iterator[None]:
        """CapacityError, with what is free now, where an allocation that was planned fails."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shortage = self._shortage(plan)
        else:
            return
        gc.collect()  # the frames of the failed call held what it had allocated
        raise shortage

    def compare(self, plan: MemoryPlan, kv_cache: int) -> Memory:
        """Once ready; says in one line when planned and measured differ by more than 2 %."""
        if self.device.kind != "cuda":
            return Memory(plan, None)
        measured = self._measured(plan, kv_cache)
        line = ", ".join(
            f"{name} {getattr(plan, name) / GIB:.2f}/{getattr(measured, name) / GIB:.2f}"
            for name in ("total", "weights", "kv_cache", "workspace", "graphs")
        )
        differs = abs(measured.total - plan.total) > _TOLERANCE * plan.total
        level = logger.warning if differs else logger.info
        level("device memory%s, planned/measured in GiB: %s", " is not as planned" if differs else "", line)
        return Memory(plan, measured)

    def _measured(self, plan: MemoryPlan, kv_cache: int) -> MemoryUse:
        planned, loaded, warm, ready = (self._marks[stage] for stage in ("planned", "loaded", "warm", "ready"))
        weights = loaded.allocated - planned.allocated - kv_cache - plan.parts["tables"]
        graphs = ready.in_use - warm.in_use
        workspace = ready.in_use - planned.in_use - weights - kv_cache - graphs
        return MemoryUse(weights, kv_cache, workspace, graphs, ready.in_use)

    def _shortage(self, plan: MemoryPlan) -> CapacityError:
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()  # the context and other processes
        taken = max(others - plan.context, 0)
        return CapacityError(
            f"the device ran out of memory: {plan.total / GIB:.2f} of {total / GIB:.2f} GiB were planned with "
            f"{plan.context / GIB:.2f} GiB in use by others, who have {others / GIB:.2f} GiB now, and "
            f"{free / GIB:.2f} GiB are free",
            hint=_advice(taken, plan.kv_cache),
        )


def _advice(taken: int, kv_cache: int) -> str:
    """Where others took so much between plan and start, and `kv_cache` bytes were planned."""
    if taken > _OWN_GROWTH:
        stop = f"stop the process that took {taken / GIB:.2f} GiB meanwhile and start again"
        return f"{stop}, or kv_cache_memory_bytes={kv_cache - taken} would fit" if kv_cache > taken else stop
    less = max(kv_cache - GIB, kv_cache // 2)
    return f"no other process took it: the plan was too low; kv_cache_memory_bytes={less} leaves more room"


def _in_use() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free
