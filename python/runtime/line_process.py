"""A child process that answers lines of JSON, and may be killed: for what a request may make slow, large or fatal."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any


class LineProcess:
    """One process: a line of JSON in, a line of JSON out. For one caller at a time.

    Args:
        script: run by path, not with -m, so that it imports nothing of the package.
    """

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-E", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._answers: SimpleQueue[str] = SimpleQueue()
        self.has_ended = False
        threading.Thread(target=self._read, daemon=True, name=f"runtime-{script.stem}").start()

    def ask(self, request: str, timeout_s: float) -> dict[str, Any] | None:
        """The answer, or None when the process died or `timeout_s` passed; it may still come then."""
        self.send(request)
        return self.receive(timeout_s)

    def send(self, request: str) -> None:
        """Returns once the process has read it, but for what a pipe holds; `receive` tells whether it has died."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer; None as for `ask`."""
        with contextlib.suppress(Empty):
            line = self._answers.get(timeout=max(timeout_s, 0.0))
            return dict(json.loads(line)) if line else None
        return None

    def stop(self) -> None:
        """Kills it and waits for its end. Idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._answers.put(line)
        self.has_ended = True
        self._answers.put("")
