"""Which requests are refused by a server of which more is asked than it can do."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from runtime.server.queue_wait import QueueWait

MAX_WAIT_S = 1.0  # for a first token, half of what the MLPerf limits for servers of chats allow
_MIN_WAITING = 8  # where answers take minutes, a few who wait are no overload
_REPLACE_S = 10.0  # within which a client sends the next one
_MAX_ENDED = 1 << 16
_MAX_BURST_S = 1.0
_PAUSE_S = 2.0  # after which it is another burst
_NUM_ARRIVALS = 64  # of which the share is known
_MAX_SURPLUS_SHARE = 0.2  # a quarter more come than end


class Overload:
    """Refuses what would wait for longer than MAX_WAIT_S while more requests come than end.

    A long queue alone is no overload. Whoever sends 512 requests at once and then waits for the answers, or sends one
    for each that has ended, is served without fail, however long that takes: no more come than end. Where others come
    although somebody has waited for MAX_WAIT_S, those that are a surplus over what has ended are refused. Where they
    keep coming all are, until the queue is short again: in the order of arrival everybody would be late otherwise, and
    stay so.

    CoDel (Nichols and Jacobson, 2012) likewise tells a burst, which drains, from a queue that stands, by the time that
    was waited. It drops from the queue's head; here a stream in the queue has had its headers.

    Args:
        clock: seconds, as the queue's.
    """

    def __init__(self, wait: QueueWait, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait = wait
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=_MAX_ENDED)  # when those ended that nobody has replaced yet
        self._burst_at = self._surplus_at = -math.inf  # the first and the last of a surplus without a pause
        self._surplus_share = 0.0  # of late, beyond what may be a burst

    def end(self) -> None:
        """A request that was not refused has ended, however it did."""
        self._ended.append(self._clock())

    def refuses(self, arrived_at: float) -> bool:
        """Whether to refuse a request; to be asked once for each.

        Args:
            arrived_at: by the clock. A burst is one however long it takes to read.
        """
        is_surplus, is_late = not self._replaces_another(), self._is_late(arrived_at)
        self._note(arrived_at, is_surplus and is_late)
        return is_late and (is_surplus or self._persists)

    @property
    def _persists(self) -> bool:
        return self._surplus_share > _MAX_SURPLUS_SHARE

    def _is_late(self, arrived_at: float) -> bool:
        """Whether it will wait for too long in a queue in which somebody has."""
        if self._wait.num_waiting < _MIN_WAITING or self._wait.expected_s() <= MAX_WAIT_S:
            return False
        return self._persists or self._wait.oldest_s(arrived_at) > MAX_WAIT_S

    def _note(self, arrived_at: float, is_late_surplus: bool) -> None:
        if arrived_at - self._surplus_at > _PAUSE_S:
            self._burst_at, self._surplus_share = arrived_at, 0.0
        if is_late_surplus:
            self._surplus_at = max(self._surplus_at, arrived_at)
        if arrived_at - self._burst_at > _MAX_BURST_S:
            self._surplus_share += (is_late_surplus - self._surplus_share) / _NUM_ARRIVALS

    def _replaces_another(self) -> bool:
        """One that has ended, which no other replaces then."""
        while self._ended and self._ended[0] < self._clock() - _REPLACE_S:
            self._ended.popleft()
        if not self._ended:
            return False
        self._ended.popleft()
        return True
