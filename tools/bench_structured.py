"""What hostile grammars cost a neighbour over HTTP: its time between tokens, on the built-in model.

    python tools/bench_structured.py [--seconds 4] [--no-hostile] [--distinct 10000] [--append FILE]

The neighbour is a client in a process of its own that streams all the while. Beside it one client asks for a bad
grammar, again and again and never the same text twice, without a pause; or for many different small schemas. A row has
the time between the neighbour's chunks in milliseconds, how long the requests beside it took to end, and the anonymous
memory of server, engine and what tries grammars. It fails when the mean time grows more than twofold or an end takes a
second. Figures from a machine that does other things besides are of no use.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bench.load.spawn import SpawnedServer
from runtime.bench.rows import append_row, environment

Structure = dict[str, Any]
Row = dict[str, Any]

HOSTILE: dict[str, Structure] = {
    "30,000 parentheses": {"regex": "(" * 30_000 + ")" * 30_000},
    "4,000 parentheses": {"regex": "(" * 4_000 + ")" * 4_000},
    "30,000 in a grammar": {"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "repetition": {"regex": "x{1000000}"},
    "nested repetition": {"regex": "((x{100}){100}){100}"},
    "repetition later": {"regex": "[ab]x{1000000}"},
    "intersections": {"grammar": "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(300))},
    "unsatisfiable": {"json": {"type": "integer", "minimum": 3, "maximum": 2}},
    "long constant": {"json": {"const": "ab" * 30_000}},
}
MAX_RATIO, MAX_END_S = 2.0, 1.0


class Client:
    """One connection that is kept."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def post(self, **body: Any) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return self._connection.getresponse()

    def end_of(self, **body: Any) -> tuple[float, int]:
        """Seconds until a request ended, and its status."""
        started = time.perf_counter()
        response = self.post(**body)
        response.read()
        return time.perf_counter() - started, response.status


# ---- the neighbour -------------------------------------------------------------------------------


class Neighbour:
    """The process that streams, as a context; then `gaps` has what it saw."""

    def __init__(self, url: str) -> None:
        self._command = [sys.executable, __file__, "--neighbour", url]
        self.gaps = np.zeros(0)

    def __enter__(self) -> Neighbour:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has had its first tokens
        return self

    def __exit__(self, *exc: object) -> None:
        found, _ = self._process.communicate()  # the end of its input ends it
        self.gaps = np.array(json.loads(found))


def stream(url: str) -> None:
    """Prints a line once tokens come, and the times between chunks, in milliseconds, when its input ends."""
    has_ended, client = threading.Event(), Client(url)
    gaps: list[float] = []

    def wait_for_end() -> None:
        sys.stdin.read()
        has_ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    body = {"prompt": "12+35=", "max_tokens": 256, "ignore_eos": True, "temperature": 0, "stream": True}
    while not has_ended.is_set():
        last = None
        for line in client.post(**body):
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if last is not None:
                gaps.append(round((now - last) * 1e3, 3))
            elif not gaps:
                print("it streams", flush=True)
            last = now
    print(json.dumps(gaps))


# ---- what is asked beside it ---------------------------------------------------------------------

Ends = list[tuple[float, int]]


def quiet(url: str, seconds: float) -> Ends:
    time.sleep(seconds)
    return []


def repeat(url: str, structure: Structure, seconds: float) -> Ends:
    """The same kind again and again, each one a different text so that no cache helps it."""
    client, deadline, ends = Client(url), time.perf_counter() + seconds, []
    ((kind, text),) = structure.items()
    for i in itertools.count():
        if time.perf_counter() > deadline:
            break
        varied = {**text, "title": f"t{i}"} if isinstance(text, dict) else text + "\n" * (i % 90 + 1)
        ends.append(client.end_of(prompt="x", max_tokens=64, structured_outputs={kind: varied}))
    return ends


def small_schemas(count: int) -> Iterator[Structure]:
    for i in range(count):
        name = f"p{i}"
        properties = {name: {"type": "integer", "maximum": i}}
        yield {"json": {"type": "object", "properties": properties, "required": [name]}}


def distinct(url: str, count: int) -> Ends:
    client = Client(url)
    return [client.end_of(prompt="x", max_tokens=1, structured_outputs=one) for one in small_schemas(count)]


def plain(url: str, seconds: float) -> Ends:
    """As `distinct`, with no grammar at all."""
    client, deadline, ends = Client(url), time.perf_counter() + seconds, []
    while time.perf_counter() < deadline:
        ends.append(client.end_of(prompt="x", max_tokens=1))
    return ends


# ---- rows ----------------------------------------------------------------------------------------


def measure(server: SpawnedServer, name: str, load: Callable[[], Ends]) -> Row:
    before = memory_bytes(server.pid)
    with Neighbour(server.url) as neighbour:
        started = time.perf_counter()
        ends = load()
        seconds = time.perf_counter() - started
    p50, p99 = np.percentile(neighbour.gaps, [50, 99])
    times, statuses = [end for end, _ in ends], Counter(str(status) for _, status in ends)
    row = {
        "beside": name,
        "itl_mean_ms": round(float(neighbour.gaps.mean()), 2),
        "itl_p50_ms": round(float(p50), 2),
        "itl_p99_ms": round(float(p99), 2),
        "itl_max_ms": round(float(neighbour.gaps.max()), 1),
        "requests": len(ends),
        "requests_per_s": round(len(ends) / seconds, 1),
        "end_p99_s": round(float(np.percentile(times or [0.0], 99)), 3),
        "end_max_s": round(max(times, default=0.0), 3),
        "statuses": dict(statuses),
        "memory_mb": [round(found / 1e6, 1) for found in (before, memory_bytes(server.pid))],
    }
    print(*(f"{value!s:>{width}}" for value, width in zip(row.values(), WIDTHS)), flush=True)
    return row


HEADER = ("beside", "mean ms", "p50", "p99", "max", "requests", "per s", "end p99 s", "end max s", "statuses", "MB")
WIDTHS = (20, 8, 7, 8, 8, 9, 8, 10, 10, 26, 18)


def memory_bytes(pid: int) -> int:
    """Anonymous memory of a process and all below it, swapped or not."""
    total, pids = 0, [pid]
    while pids:
        one = Path(f"/proc/{pids.pop()}")
        try:
            status = (one / "status").read_text()
            pids += [int(child) for task in one.glob("task/*/children") for child in task.read_text().split()]
        except OSError:  # it has ended
            continue
        total += sum(int(kB) << 10 for kB in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", status, re.MULTILINE))
    return total


def measure_all(seconds: float, hostile: bool, count: int) -> Iterator[Row]:
    """The first row is the neighbour alone."""
    with SpawnedServer({"max_num_seqs": 64}) as server:
        url = server.url
        Client(url).end_of(prompt="x", structured_outputs={"choice": ["a"]})  # starts what compiles
        yield measure(server, "nobody", lambda: quiet(url, seconds))
        yield measure(server, "plain requests", lambda: plain(url, seconds))
        for name, structure in HOSTILE.items() if hostile else ():
            yield measure(server, name, lambda: repeat(url, structure, seconds))  # noqa: B023 - called here
        if count:
            yield measure(server, f"{count:,} schemas", lambda: distinct(url, count))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind")
    parser.add_argument("--hostile", action=argparse.BooleanOptionalAction, default=True, help="the bad ones")
    parser.add_argument("--distinct", type=int, default=10_000, help="different schemas")
    parser.add_argument("--append", type=Path, metavar="FILE")
    parser.add_argument("--neighbour", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.neighbour is not None:
        stream(args.neighbour)
        return 0
    print(*(f"{name:>{width}}" for name, width in zip(HEADER, WIDTHS)))
    rows = []
    for row in measure_all(args.seconds, args.hostile, args.distinct):
        rows.append(row)
        if args.append is not None:
            head = {"engine": "runtime", "model": "builtin", "tp": 1, "scenario": "structured_neighbour"}
            append_row({**head, **row, **environment("cpu")}, args.append)
    limit = MAX_RATIO * rows[0]["itl_mean_ms"]
    return not all(row["itl_mean_ms"] <= limit and row["end_max_s"] < MAX_END_S for row in rows)


if __name__ == "__main__":
    sys.exit(main())
