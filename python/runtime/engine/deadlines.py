"""Requests that must end at a time."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.engine.request import RequestHandle


class Deadlines:
    """`add` may be called from any thread, `expired` from the engine's alone."""

    def __init__(self) -> None:
        self._added: deque[tuple[float, int, RequestHandle]] = deque()
        self._heap: list[tuple[float, int, RequestHandle]] = []
        self._serial = itertools.count()  # equal times are told apart

    def add(self, handle: RequestHandle) -> None:
        """A request without a deadline is left out."""
        if handle.options.deadline_s is not None:
            self._added.append((handle.arrived_at + handle.options.deadline_s, next(self._serial), handle))

    def expired(self, now: float) -> list[RequestHandle]:
        """Requests that have not ended and should have by `now`, in seconds of `time.perf_counter()`; each once."""
        while self._added:
            heapq.heappush(self._heap, self._added.popleft())
        found = []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].done):
            handle = heapq.heappop(self._heap)[2]
            if not handle.done:
                found.append(handle)
        return found
