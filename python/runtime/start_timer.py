"""Where the time of a start goes. The phases follow one another, so their sum is the whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

_FIELDS_BEFORE_START_TIME = 19  # of /proc/self/stat, behind the process's name; see proc(5)


class StartTimer:
    """All time from its creation on belongs to the phase that was entered last. For one thread at a time.

    Args:
        phase: the first one.
        begun_s: how long that has been going on.

    Attributes:
        seconds: of each phase that has been left, in the order in which they were first entered.
    """

    def __init__(self, phase: str, begun_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = phase, time.monotonic() - begun_s

    @classmethod
    def of_process(cls, phase: str) -> StartTimer:
        """Began when this process did."""
        return cls(phase, process_age_s())

    def enter(self, phase: str) -> None:
        """A phase may be entered again; its times add up."""
        now = time.monotonic()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def stop(self) -> dict[str, float]:
        """Leaves the last phase; `seconds`. What comes later is no part of the start."""
        self.enter("")
        return self.seconds


def process_age_s() -> float:
    """Seconds since this process began, to a hundredth; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[_FIELDS_BEFORE_START_TIME]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 0.0)
    except (OSError, LookupError, ValueError):
        return 0.0
