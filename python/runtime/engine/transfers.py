"""Plans to the device and results back. On a CPU both are the same memory; on CUDA copies run behind the host."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from runtime.kernels import step_plan as sp
from runtime.kernels.step_state import StepOutputs

Words = npt.NDArray[np.int32]


class Transfers(Protocol):
    """One set of buffers per plan that may exist at once, used in turn."""

    words: list[Words]  # the plans, on the host

    def upload(self, buffer: int, num_words: int) -> torch.Tensor:
        """The plan on the device, int32 [num_words]."""

    def device_outputs(self, buffer: int) -> StepOutputs:
        """What the sampler writes."""

    def download(self, buffer: int, header: list[int]) -> torch.cuda.Event | None:
        """Starts copying results to the host; the event says when they are there, None: they are."""

    def host_outputs(self, buffer: int) -> StepOutputs:
        """Where the results of that plan's step are on the host, once they have come."""


def plan_buffers(transfers: Transfers) -> list[tuple[int, int]]:
    """(address, words) of each plan buffer, for `Scheduler.attach_plan_buffers`."""
    return [(words.ctypes.data, words.size) for words in transfers.words]


class HostTransfers:
    """CPU: nothing moves."""

    def __init__(self, num_buffers: int, plan_capacity: int, max_num_seqs: int) -> None:
        self._plans = [torch.zeros(plan_capacity, dtype=torch.int32) for _ in range(num_buffers)]
        self.words: list[Words] = [plan.numpy() for plan in self._plans]
        self._outputs = [StepOutputs.allocate(max_num_seqs=max_num_seqs, device="cpu") for _ in self._plans]

    def upload(self, buffer: int, num_words: int) -> torch.Tensor:
        return self._plans[buffer]

    def device_outputs(self, buffer: int) -> StepOutputs:
        return self._outputs[buffer]

    def download(self, buffer: int, header: list[int]) -> None:
        return None

    def host_outputs(self, buffer: int) -> StepOutputs:
        return self._outputs[buffer]


class CudaTransfers:
    """CUDA: pinned plans, one copy up and one asynchronous copy of the results down, all on the current stream."""

    def __init__(self, num_buffers: int, plan_capacity: int, max_num_seqs: int, device: torch.device) -> None:
        self._plans = [torch.zeros(plan_capacity, dtype=torch.int32, pin_memory=True) for _ in range(num_buffers)]
        self.words: list[Words] = [plan.numpy() for plan in self._plans]
        # one is enough: the stream orders the next plan's copy behind the last step that reads it
        self._device_plan = torch.zeros(plan_capacity, dtype=torch.int32, device=device)
        self._device_outputs = StepOutputs.allocate(max_num_seqs=max_num_seqs, device=device)
        self._host_outputs = [_pinned(self._device_outputs) for _ in self._plans]
        self._events = [torch.cuda.Event() for _ in self._plans]  # type: ignore[no-untyped-call]

    def upload(self, buffer: int, num_words: int) -> torch.Tensor:
        plan = self._device_plan[:num_words]
        plan.copy_(self._plans[buffer][:num_words], non_blocking=True)
        return self._device_plan

    def device_outputs(self, buffer: int) -> StepOutputs:
        return self._device_outputs

    def download(self, buffer: int, header: list[int]) -> torch.cuda.Event:
        num_rows, host, device = header[sp.NUM_ROWS], self._host_outputs[buffer], self._device_outputs
        host.token_ids[:num_rows].copy_(device.token_ids[:num_rows], non_blocking=True)
        if not header[sp.STEP_FLAGS] & sp.STEP_GREEDY_ONLY:  # such a step has no logprobs
            host.logprobs[:num_rows].copy_(device.logprobs[:num_rows], non_blocking=True)
            host.logprob_ids[:num_rows].copy_(device.logprob_ids[:num_rows], non_blocking=True)
        self._events[buffer].record()
        return self._events[buffer]

    def host_outputs(self, buffer: int) -> StepOutputs:
        return self._host_outputs[buffer]


def _pinned(outputs: StepOutputs) -> StepOutputs:
    def host(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    return StepOutputs(
        token_ids=host(outputs.token_ids), logprobs=host(outputs.logprobs), logprob_ids=host(outputs.logprob_ids)
    )
