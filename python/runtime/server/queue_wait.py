"""How long a request that comes now will wait for its first token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_NUM_STARTS = 64  # of which the rate is known
_MIN_STARTS = 8
_MIN_AGE_SHARE = 0.25


class QueueWait:
    """By Little's law: completions that wait, over the rate at which they start.

    The rate is that of the last starts, on a clock that stands still while nobody waits, so that an idle server does
    not look like a slow one. A burst looks like a long queue before its first ones have had the time to start, so the
    law counts only once somebody has waited for a share of the limit.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[int, tuple[float, int]] = {}  # id: (arrival, completions), the oldest first
        self._num_waiting = 0
        self._busy_s = 0.0
        self._seen_at = clock()
        self._starts: deque[float] = deque(maxlen=_NUM_STARTS)  # on the clock of busy time

    def arrive(self, request_id: int, num_completions: int) -> None:
        self._advance()
        self._waiting[request_id] = (self._seen_at, num_completions)
        self._num_waiting += num_completions

    def start(self, request_id: int) -> None:
        """It has its first token. Idempotent."""
        num_completions = self.leave(request_id)
        self._starts.extend([self._busy_s] * min(num_completions, _NUM_STARTS))

    def leave(self, request_id: int) -> int:
        """It ended without one; how many completions waited. Idempotent."""
        self._advance()
        _, num_completions = self._waiting.pop(request_id, (0.0, 0))
        self._num_waiting -= num_completions
        return num_completions

    def expected_s(self) -> float:
        """0 while nobody waits, and until enough have started."""
        self._advance()
        if len(self._starts) < _MIN_STARTS:
            return 0.0
        return self._num_waiting * (self._busy_s - self._starts[0]) / len(self._starts)

    def exceeds(self, limit_s: float) -> bool:
        """Whether a request that comes now will wait for longer."""
        if not self._waiting or self.expected_s() <= limit_s:
            return False
        oldest, _ = next(iter(self._waiting.values()))
        return self._seen_at - oldest >= _MIN_AGE_SHARE * limit_s

    def _advance(self) -> None:
        now = self._clock()
        if self._waiting:
            self._busy_s += now - self._seen_at
        self._seen_at = now
