"""`runtime serve` in a process of its own, on loopback, for as long as it is measured."""

from __future__ import annotations

import collections
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from runtime.errors import ConfigError

_END_TIMEOUT_S = 20.0
_POLL_S = 0.05
_NUM_KEPT_LINES = 20
_READY = re.compile(r"serving .* at (http://\S+)")


class SpawnedServer:
    """A context: inside of it `url` answers.

    Args:
        arguments: of the engine, by name; None and defaults may be left out.
        flags: further ones of `runtime serve`.
        start_timeout_s: until it must be ready.
        num_kept_lines: of what it says on standard error, the last so many; None: all.

    Raises:
        ConfigError: from `__enter__`: it ended, or was not ready in time; with its last line.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        flags: Sequence[str] = (),
        start_timeout_s: float = 600.0,
        num_kept_lines: int | None = _NUM_KEPT_LINES,
    ) -> None:
        self.url = ""
        self.command = [sys.executable, "-m", "runtime", "serve", *_as_flags(arguments), "--port", "0", *flags]
        self._start_timeout_s = start_timeout_s
        self._lines: collections.deque[str] = collections.deque(maxlen=num_kept_lines)
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="runtime-spawned", daemon=True)
        self._process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Of the server; that of its engine is a child's."""
        return self._process.pid

    @property
    def lines(self) -> list[str]:
        """What it has said, without line ends; all of it once it has ended."""
        return list(self._lines)

    def __enter__(self) -> SpawnedServer:
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader.start()
        try:
            deadline = time.monotonic() + self._start_timeout_s
            in_time = self._is_ready.wait(self._start_timeout_s)
            if not (self.url and self._accepts(deadline)):
                raise ConfigError(f"the spawned server {self._trouble(in_time)}", hint=" ".join(self.command[2:]))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _accepts(self, deadline: float) -> bool:
        """A server may name its address before it listens."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), _POLL_S).close()
                return True
            except OSError:
                time.sleep(_POLL_S)
        return False

    def _trouble(self, in_time: bool) -> str:
        last = self._lines[-1] if self._lines else "it said nothing"
        if in_time and self._process.poll() is not None:
            return f"ended with status {self._process.wait()}: {last}"
        return f"was not ready within --start-timeout={self._start_timeout_s:g} s: {last}"

    def _end(self) -> None:
        """It drains, and is killed if that takes too long."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_END_TIMEOUT_S)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.rstrip("\n"))
            if not self.url and (found := _READY.fullmatch(self._lines[-1])):
                self.url = found[1]
                self._is_ready.set()
        self._is_ready.set()  # it has ended


def _as_flags(arguments: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    model = arguments.get("model")
    if model is not None:
        flags.append(str(model))
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and name != "model":
            flags += [f"--{flag}", str(value)]
    return flags
