"""Tries a grammar where it can do no harm, before it is compiled in the engine's process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.engine.constraint import NAME, refusal
from runtime.errors import CapacityError, InvalidRequestError
from runtime.line_process import LineProcess

_WORKER = Path(__file__).with_name("grammar_worker.py")
_START_TIMEOUT_S = 60.0
_TIMEOUT_S = 0.8  # the worker's own limits are lower, but it may get no core to say that they are met
_MAX_LATE_S = 10.0


class GrammarTrials:
    """The worker process of one thread. A grammar that ends its trial does not end the worker.

    Args:
        start_line: makes the worker's first line.
    """

    def __init__(self, start_line: Callable[[], str]) -> None:
        self._start_line = start_line
        self._process: LineProcess | None = None
        self._is_ready = False
        self._late_since: float | None = None  # an answer that nobody waits for any more is still to come

    def start(self) -> None:
        """Has the process begin; returns before it can answer."""
        if self._process is None:
            self._process, self._is_ready, self._late_since = LineProcess(_WORKER), False, None
            self._process.send(self._start_line())

    def check(self, grammar: str) -> None:
        """Tries one.

        Raises:
            InvalidRequestError: it does not compile, or not within the limits of the process.
            CapacityError: the process did not get the time to tell.
        """
        answer = self._ask(grammar)
        if answer is None or answer.get("killed") == signal.SIGALRM:
            raise CapacityError("no core was free to compile the grammar", hint="retry later, or simplify the grammar")
        if "killed" in answer:
            message = f"{NAME}: the grammar does not compile in little time and memory; simplify it"
            raise InvalidRequestError(NAME, message=message)
        if answer["error"]:
            raise refusal(answer["error"])

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _ask(self, grammar: str) -> dict[str, Any] | None:
        """The answer, or None when it does not come in time. The process is kept then: its tokenizer took long."""
        process, deadline = self._ready_process(), time.monotonic() + _TIMEOUT_S
        is_free = self._late_since is None or process.receive(_TIMEOUT_S) is not None
        answer = process.ask(json.dumps({"grammar": grammar}), deadline - time.monotonic()) if is_free else None
        if answer is not None:
            self._late_since = None
        elif is_free:
            self._late_since = time.monotonic()
        if process.has_ended or (self._late_since is not None and time.monotonic() - self._late_since > _MAX_LATE_S):
            self.stop()
        return answer

    def _ready_process(self) -> LineProcess:
        if self._process is not None and self._process.has_ended:
            self.stop()
        self.start()
        assert self._process is not None
        if not self._is_ready and self._process.receive(_START_TIMEOUT_S) is None:
            self.stop()
            raise CapacityError("the process that tries grammars did not start", hint="is there memory left?")
        self._is_ready = True
        return self._process
