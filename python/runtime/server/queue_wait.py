"""How long a request that comes now will wait for its first token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_NUM_STARTS = 64  # of which the rate is known
_MIN_STARTS = 8
_SPAN_S = 5.0
_MAX_STARTS = 1 << 14
_MIN_AGE_SHARE = 0.25


class QueueWait:
    """By Little's law: completions that wait, over the rate at which they start.

    The rate is that of the last starts, on a clock that stands still while nobody waits, so that an idle server does
    not look like a slow one. Requests of one length end and start in waves, so it is the lesser of that of the last few
    starts and that of the last seconds. A burst looks like a long queue before its first ones have had the time to
    start, so the law counts only once somebody has waited for a share of the limit.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[int, tuple[float, int]] = {}  # id: (arrival, completions), the oldest first
        self._busy_s = 0.0
        self._seen_at = clock()
        self._starts: deque[float] = deque(maxlen=_MAX_STARTS)  # on the clock of busy time
        self.num_waiting = 0  # completions

    def arrive(self, request_id: int, num_completions: int) -> None:
        self._advance()
        self._waiting[request_id] = (self._seen_at, num_completions)
        self.num_waiting += num_completions

    def start(self, request_id: int) -> None:
        """It has its first token. Idempotent."""
        num_completions = self.leave(request_id)
        self._starts.extend([self._busy_s] * num_completions)
        while len(self._starts) > _NUM_STARTS and self._starts[1] < self._busy_s - _SPAN_S:
            self._starts.popleft()

    def has(self, request_id: int) -> bool:
        """Whether it waits for its first token."""
        return request_id in self._waiting

    def leave(self, request_id: int) -> int:
        """It ended without one; how many completions waited. Idempotent."""
        self._advance()
        _, num_completions = self._waiting.pop(request_id, (0.0, 0))
        self.num_waiting -= num_completions
        return num_completions

    def expected_s(self) -> float:
        """0 while nobody waits, and until enough have started."""
        self._advance()
        count = len(self._starts)
        if count < _MIN_STARTS:
            return 0.0
        few = min(count, _NUM_STARTS)
        return self.num_waiting * max(self._since_start(few) / few, self._since_start(count) / count)

    def oldest_s(self, at: float | None = None) -> float:
        """How long the one that waits for longest has waited, or had at a time of the clock; 0: nobody waits."""
        oldest, _ = next(iter(self._waiting.values()), (self._clock(), 0))
        return (self._clock() if at is None else at) - oldest

    def exceeds(self, limit_s: float) -> bool:
        """Whether a request that comes now will wait for longer."""
        return self.expected_s() > limit_s and self.oldest_s() >= _MIN_AGE_SHARE * limit_s

    def _since_start(self, count: int) -> float:
        """Busy time since the start before which there were so many less."""
        return self._busy_s - self._starts[-count]

    def _advance(self) -> None:
        now = self._clock()
        if self._waiting:
            self._busy_s += now - self._seen_at
        self._seen_at = now
