"""A stream beside the one that computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .tp_group import PendingSum


class SideStream:
    """A CUDA stream whose work goes before that of the current one where both wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """Of the CUDA stream, as `_core` takes it."""
        return int(self._stream.cuda_stream)

    @property
    def current(self) -> int:
        """Handle of the stream that computes."""
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def follow(self) -> None:
        """What the current stream has been given so far comes first."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def mark(self) -> Callable[[], None]:
        """Makes, when called, the current stream wait for what this one has been given so far."""
        event = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(event)


class SumOnTheSide(PendingSum):
    """A sum that another stream makes in place."""

    def __init__(self, total: Tensor, wait: Callable[[], None]) -> None:
        super().__init__(total)
        self._wait_for_stream = wait

    def _wait(self) -> Tensor:
        self._wait_for_stream()
        return self._total
