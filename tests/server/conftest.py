"""Servers on loopback, with the built-in model."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

MEMORY_LIMIT_BYTES = 16 << 30  # of address space, which torch takes plenty of


class ServerProcess:
    """`runtime serve` in a process of its own. `lines` is its log, as far as it has come."""

    def __init__(self, *flags, environment=None):
        command = [sys.executable, "-m", "runtime", "serve", "--port", "0", "--num-kv-blocks", "512", *map(str, flags)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNTIME_")}
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "OMP_NUM_THREADS": "1", **(environment or {})},
            preexec_fn=_limit_memory,
        )
        self.lines = []
        self.url = None
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self):
        assert self._is_ready.wait(60), "\n".join(self.lines)
        assert self.url is not None, "\n".join(self.lines)
        return self

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    @property
    def engine_pid(self):
        """The child that runs `engine_child`."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"engine_child" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("the server has no engine")

    def stop(self, signal_number=signal.SIGTERM, timeout=20):
        """Ends it; the exit status."""
        self.process.send_signal(signal_number)
        return self.wait(timeout)

    def wait(self, timeout=20):
        status = self.process.wait(timeout)
        self._reader.join(5)
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.fullmatch(r"serving .* at (http://\S+)", self.lines[-1])
            if found:
                self.url = found[1]
                self._is_ready.set()
        self._is_ready.set()  # it ended


def _limit_memory():
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


@pytest.fixture(scope="session")
def server():
    """One for all tests that leave it as it was."""
    process = ServerProcess("--deterministic", "--log-level", "info").wait_until_ready()
    yield process
    if process.process.poll() is None:
        process.stop()
    process.kill()


@pytest.fixture
def start_server():
    """Starts further ones, with flags of their own."""
    started = []

    def start(*flags, environment=None, ready=True):
        started.append(ServerProcess(*flags, environment=environment))
        return started[-1].wait_until_ready() if ready else started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def wait_for():
    """Polls until a condition holds; under a deadline."""

    def wait(condition, timeout_s=10):
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)
        return found

    return wait
