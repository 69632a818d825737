"""An engine in a process of its own, for `rank_faults.py`: what it says, and the processes that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

START_S = 120.0  # of an engine, on a machine that compiles its kernels meanwhile
END_S = 10.0  # for what an engine's end leaves behind
SHM = Path("/dev/shm")

# An engine that says on its standard output what happens: a line of JSON an event, with the time.
ENGINE = """
import json, os, sys, time
def say(event, **more):
    print(json.dumps({"event": event, "t": time.monotonic(), **more}), flush=True)
settings = json.loads(sys.argv[1])
say("begin")
try:
    from runtime import LLM, SamplingParams
    for name, limit in settings["ulimits"].items():  # of the engine: Python's own imports come first
        import resource
        resource.setrlimit(getattr(resource, name), (limit, limit))
    for module in settings["modules"]:
        __import__(module)
    llm = LLM(**settings["arguments"])
    say("ready")
    params = SamplingParams(temperature=0.0, max_tokens=settings["max_tokens"], ignore_eos=True)
    handles = [llm.submit([9 + (i * j) % 300 for j in range(settings["prompt_len"])], params) for i in range(1, 17)]
    say("submitted")
    if settings["wait_for_tokens"]:
        for handle in handles:
            next(iter(handle))
    say("serving")
    if settings["close"]:
        llm.close()
        say("closed")
    for handle in handles:
        try:
            handle.result(60)
            say("result")
        except Exception as error:
            say("error", text=f"{type(error).__name__}: {error}")
except BaseException as error:
    say("error", text=f"{type(error).__name__}: {error}")
say("end")
"""


class Program:
    """An engine in a process of its own, and the processes that it started."""

    def __init__(self, settings: dict[str, Any], environment: dict[str, str], before: Sequence[str] = ()) -> None:
        self._shared = set(os.listdir(SHM))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", ENGINE, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self._limit = threading.Timer(START_S + END_S, self.process.kill)
        self._limit.start()
        self.events: list[dict[str, Any]] = []
        self._seen: set[int] = set()

    def wait_for(self, event: str) -> bool:
        """Whether it came; reads all events before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return True
        return False

    def ranks(self) -> list[int]:
        """Processes of ranks above 0 that run, in rank order."""
        found = sorted(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_rank(pid))
        self._seen.update(found)
        return found

    def _is_rank(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return b"runtime.worker" in words and int(fields[1]) == self.process.pid and fields[0] != "Z"
        return False

    def ranks_have_joined(self) -> bool:
        """All of them hold the memory of their group, whose name has gone from /dev/shm."""
        with contextlib.suppress(OSError):
            return all(f"{SHM}/runtime-" in Path(f"/proc/{pid}/maps").read_text() for pid in self.ranks())
        return False

    def wait_until(self, holds: Callable[[], bool]) -> bool:
        """Whether it came to hold while the program ran."""
        while not holds():
            if self.process.poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def wait_for_rank(self, index: int) -> int:
        if not self.wait_until(lambda: len(self.ranks()) > index):
            raise RuntimeError(f"rank {index + 1} did not start: {self.last_words()}")
        return self.ranks()[index]

    def gone(self, since: float) -> float | None:
        """Seconds from `since` until no rank runs; None: some still do."""
        while time.monotonic() < since + END_S:
            if not any(runs(pid) for pid in self._seen):
                return time.monotonic() - since
            time.sleep(0.01)
        return None

    def left(self) -> list[str]:
        return sorted(name for name in os.listdir(SHM) if name not in self._shared and name.startswith("runtime-"))

    def last_words(self) -> str:
        """The last line on standard error, of a program that did not come to say it otherwise."""
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["(nothing was said)"])[-1]

    def end(self) -> None:
        for pid in [*self.ranks(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        self._limit.cancel()
        self._errors.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
