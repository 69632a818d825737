"""Functions that other threads want run in the engine's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from runtime.errors import for_this_caller


class Commands:
    """`add` may be called from any thread, `run` from the engine's alone."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def add(self, function: Callable[[], Any]) -> Future[Any]:
        """The result, or error, of a function that `run` will call."""
        future: Future[Any] = Future()
        self._waiting.append((function, future))
        return future

    def run(self) -> None:
        """Calls what was added, in that order."""
        while self._waiting:
            function, future = self._waiting.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def cancel(self, error: BaseException) -> None:
        """Whoever waits gets the error."""
        while self._waiting:
            _, future = self._waiting.popleft()
            future.set_exception(for_this_caller(error))
