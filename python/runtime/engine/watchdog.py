"""The thread that ends an engine which cannot say itself that it must: a step hangs, or a rank is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.engine.rank_group import SingleRank

_LONGEST_LOOK_S = 1.0


class Watchdog:
    """Looks until it is stopped, or has found something.

    Args:
        give_up: called once, in the watchdog's thread, with the error that every caller shall get.
    """

    def __init__(self, step_timeout_s: float, ranks: SingleRank, give_up: Callable[[BaseException], None]) -> None:
        self.busy_since: float | None = None  # time.monotonic() of the last launch; None: the engine is idle
        self._timeout_s, self._ranks, self._give_up = step_timeout_s, ranks, give_up
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="runtime-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Finds nothing any more. Idempotent."""
        self._stopped.set()

    def _watch(self) -> None:
        interval = min(self._timeout_s / 4, _LONGEST_LOOK_S)
        while not self._stopped.is_set():
            error = self._look(interval)
            if error is not None and not self._stopped.is_set():
                self._give_up(error)
                self._ranks.abort(str(error))
                return

    def _look(self, interval: float) -> BaseException | None:
        loss, since = self._ranks.wait_for_loss(interval), self.busy_since
        if loss is None and since is not None and time.monotonic() - since > self._timeout_s:
            return self._ranks.blame_hung_step()
        return loss
