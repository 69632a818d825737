"""Serves the built-in model at 80 % of its capacity, with 1 % aborted and 1 % bad requests, and watches its memory.

    python tools/soak.py [--seconds S]

Prints one JSON object. It fails when a good request fails, when server and engine together grow by 10 MB or more after
the first 15 s (RssAnon + VmSwap), or over four hours or more by 1 MB an hour. How long its event loop was blocked
counts with --max-blocked-ms alone, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOAD_SHARE, ABORT_SHARE, BAD_SHARE = 0.8, 0.01, 0.01
WARM_UP_S, MAX_GROWTH_MB = 15, 10.0
HOURS_S, MAX_MB_PER_H = 4 * 3600, 1.0  # from so many seconds on the slope counts
PROMPT_LEN, OUTPUT_LEN = 24, 24  # tokens
SAMPLE_S = 0.5
MAX_OPEN = 64
NUM_KV_BLOCKS = 512  # all of them are written before the warm-up ends
BAD_BODIES = (
    b"{",
    b"[" * 100_000,
    b'{"prompt": "a", "temperature": 9}',
    b'{"prompt": [1, 99999]}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "%s"}' % (b"x" * 500_000),
    b'{"prompt": [%s1]}' % (b"1," * 300_000),
    b'{"prompt": "a", "model": "gpt-4"}',
)
LONG = b'{"prompt": "1+1=", "max_tokens": 900, "ignore_eos": true, "stream": true}'


class Server:
    """`runtime serve`, its event loop watched. `blocked_ms` is the longest time it did nothing else."""

    def __init__(self) -> None:
        program = str(ROOT / "tests" / "server" / "watched_server.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, program, "serve", "--port", "0", "--num-kv-blocks", str(NUM_KV_BLOCKS)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.url, self.blocked_ms = "", 0.0
        self._is_ready, self._has_told = threading.Event(), threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._is_ready.wait(120) or not self.url:
            raise SystemExit("the server did not start")
        self.address = ("127.0.0.1", int(self.url.rsplit(":", 1)[1]))

    def forget_blocked(self) -> None:
        self.ask()
        self.blocked_ms = 0.0

    def memory_bytes(self) -> int:
        """Anonymous memory, swapped or not, of the server and its engine."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        engines = [child for child in children if b"engine_child" in Path(f"/proc/{child}/cmdline").read_bytes()]
        return sum(_anonymous_bytes(process) for process in (str(pid), *engines))

    def stop(self) -> int:
        self.ask()
        self.process.terminate()
        return self.process.wait(60)

    def ask(self) -> None:
        self._has_told.clear()
        self.process.send_signal(signal.SIGUSR1)
        self._has_told.wait(10)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("serving "):
                self.url = line.rsplit(" ", 1)[1].strip()
                self._is_ready.set()
            elif line.startswith("blocked "):
                self.blocked_ms = max(self.blocked_ms, float(line.split()[1]))
                self._has_told.set()
            elif not line.startswith("built-in model"):
                print(line, end="", file=sys.stderr)
        self._is_ready.set()


def _anonymous_bytes(pid: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kilobytes) << 10 for kilobytes in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", status, re.M))


def load(server: Server, *flags: object) -> subprocess.Popen[str]:
    """`runtime bench serve` on it; its row comes on stdout."""
    lengths = ["--in", str(PROMPT_LEN), "--out", str(OUTPUT_LEN), "--ignore-eos"]
    command = [sys.executable, "-m", "runtime", "bench", "serve", "--json", "--base-url", server.url, *lengths]
    return subprocess.Popen([*command, *map(str, flags)], stdout=subprocess.PIPE, text=True)


def row_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load generator ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


class Trouble(threading.Thread):
    """Clients that go away, and clients that ask for nonsense, so many a second."""

    def __init__(self, server: Server, aborts_per_s: float, bad_per_s: float) -> None:
        super().__init__(daemon=True)
        self.num_aborted = self.num_bad = 0
        self.answers: list[str] = []  # to nonsense, that are no 4xx
        self._server, self._rates = server, (aborts_per_s, bad_per_s)
        self._rng, self._is_over = random.Random(0), threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(self._rng.expovariate(sum(self._rates))):
            self._abort() if self._rng.random() * sum(self._rates) < self._rates[0] else self._ask_badly()

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _abort(self) -> None:
        with socket.create_connection(self._server.address, timeout=30) as connection:
            connection.sendall(_request(LONG))
            connection.settimeout(self._rng.choice([0.01, 0.1, 0.5]))
            try:
                connection.recv(4096)
            except TimeoutError:
                pass
        self.num_aborted += 1

    def _ask_badly(self) -> None:
        with socket.create_connection(self._server.address, timeout=30) as connection:
            connection.sendall(_request(self._rng.choice(BAD_BODIES)))
            line = connection.recv(4096).split(b"\r\n")[0].decode()
        self.num_bad += 1
        if not line.startswith("HTTP/1.1 4"):
            self.answers.append(line)


def _request(body: bytes) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def watch_memory(server: Server, load_: subprocess.Popen[str]) -> list[tuple[float, int]]:
    """(seconds, bytes) until the load ends."""
    started, samples = time.monotonic(), []
    while load_.poll() is None and server.process.poll() is None:
        samples.append((time.monotonic() - started, server.memory_bytes()))
        time.sleep(SAMPLE_S)
    return samples


def figures(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """What the memory did after WARM_UP_S."""
    settled = [(at, size) for at, size in samples if at >= WARM_UP_S]
    grown = settled[-1][1] - settled[0][1]
    return {
        "mb": round(settled[-1][1] / 1e6, 2),
        "grown_mb": round(grown / 1e6, 2),
        "mb_per_h": _mb_per_h(settled),
        "mb_per_h_last_half": _mb_per_h(settled[len(settled) // 2 :]),
    }


def _mb_per_h(samples: Sequence[tuple[float, int]]) -> float:
    return round(statistics.linear_regression(*zip(*samples)).slope * 3600 / 1e6, 2)


def soak(server: Server, seconds: float) -> dict[str, Any]:
    capacity = row_of(load(server, "--concurrency", MAX_OPEN, "--duration", 4))["requests_per_s"]
    rate = LOAD_SHARE * capacity
    server.forget_blocked()
    trouble = Trouble(server, ABORT_SHARE * rate, BAD_SHARE * rate)
    trouble.start()
    # at most MAX_OPEN: where the machine gets slower meanwhile, a queue would be what grows
    good = load(server, "--rate", rate, "--duration", seconds, "--concurrency", MAX_OPEN)
    samples = watch_memory(server, good)
    row = row_of(good)
    trouble.stop()
    counts = {"aborted": trouble.num_aborted, "bad": trouble.num_bad, "wrong_answers": trouble.answers}
    kept = {name: row[name] for name in ("succeeded", "errors", "refused_429", "s")}
    return {"capacity_per_s": capacity, "rate": round(rate, 2), **kept, **counts, **figures(samples)}


def failures(row: dict[str, Any], max_blocked_ms: float) -> list[str]:
    wrong = [f"{name}: {row[name]}" for name in ("errors", "refused_429", "wrong_answers", "exit_status") if row[name]]
    if row["grown_mb"] >= MAX_GROWTH_MB:
        wrong.append(f"it grew by {row['grown_mb']} MB")
    if row["s"] >= HOURS_S and row["mb_per_h"] >= MAX_MB_PER_H:
        wrong.append(f"it grows by {row['mb_per_h']} MB an hour")
    if row["blocked_ms"] > max_blocked_ms:
        wrong.append(f"its event loop was blocked for {row['blocked_ms']} ms")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help=f"above {2 * WARM_UP_S}; default: 60")
    parser.add_argument("--max-blocked-ms", type=float, default=math.inf, metavar="MS")
    args = parser.parse_args()
    seconds = args.seconds
    if seconds < 2 * WARM_UP_S:
        parser.error(f"--seconds={seconds:g}: must be at least {2 * WARM_UP_S}; nearest: {2 * WARM_UP_S}")
    server = Server()
    try:
        row = soak(server, seconds)
        row["exit_status"] = server.stop()
        row["blocked_ms"] = server.blocked_ms
    finally:
        server.process.kill()
    print(json.dumps(row))
    for sentence in (wrong := failures(row, args.max_blocked_ms)):
        print(f"soak: {sentence}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
