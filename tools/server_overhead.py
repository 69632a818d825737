"""What the HTTP server adds to the time to the first token, with 64 and with 512 streams of the built-in model at once.

    OMP_NUM_THREADS=1 python tools/server_overhead.py [--append FILE]

The server's log has both times for each request: `ttft_ms` from the first bytes of the request to its first token
there, `engine_ttft_ms` from its arrival at the engine. Their difference is the overhead: HTTP, parsing, tokenising, and
both ways between the processes. Prints one JSON row for each number of streams; fails when a request fails, or when the
99th percentile of the overhead with 64 streams is above 25 ms. Server, engine and client share the machine, so figures
from one that does other things besides are of no use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.bench.load.spawn import SpawnedServer
from runtime.bench.rows import append_row, environment

STREAMS = {64: 256, 512: 1024}  # at once: requests
PROMPT_LEN, OUTPUT_LEN = 32, 64  # tokens
MAX_P99_MS = {64: 25.0}
KEPT = ("requests", "succeeded", "errors", "refused_429", "s", "tok_s", "ttft_p50_ms", "ttft_p99_ms", "client_cpu_pct")

Row = dict[str, Any]


def load(url: str, num_streams: int, num_requests: int) -> Row:
    """The row of `runtime bench serve`."""
    shape = ["--in", PROMPT_LEN, "--out", OUTPUT_LEN, "--ignore-eos"]
    amount = ["--concurrency", num_streams, "--num-requests", num_requests, "--warmup", 8]
    command = [sys.executable, "-m", "runtime", "bench", "serve", "--json", "--base-url", url, *shape, *amount]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def overheads_ms(log: list[str], count: int) -> Iterator[float]:
    """Of the last so many requests."""
    entries = [json.loads(line) for line in log if line.startswith("{")]
    for entry in [entry for entry in entries if "engine_ttft_ms" in entry][-count:]:
        yield entry["ttft_ms"] - entry["engine_ttft_ms"]


def measure(num_streams: int, num_requests: int) -> Row:
    flags = ["--log-level", "info", "--log-format", "json"]
    server = SpawnedServer({}, flags=flags, num_kept_lines=None)
    with server:
        row = load(server.url, num_streams, num_requests)
    found = list(overheads_ms(server.lines, num_requests))
    head = {"engine": "runtime", "model": "builtin", "tp": 1, "scenario": f"server_overhead_c{num_streams}"}
    shape = {"in": PROMPT_LEN, "out": OUTPUT_LEN, "concurrency": num_streams}
    overhead = {f"overhead_p{p}_ms": round(statistics.quantiles(found, n=100)[p - 1], 1) for p in (50, 99)}
    kept = {name: row.get(name) for name in KEPT}
    return {**head, **shape, **overhead, "overhead_max_ms": round(max(found), 1), **kept, **environment("cpu")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", type=Path, metavar="FILE")
    args = parser.parse_args()
    is_good = True
    for num_streams, num_requests in STREAMS.items():
        row = measure(num_streams, num_requests)
        print(json.dumps(row))
        if args.append is not None:
            append_row(row, args.append)
        is_good &= row["succeeded"] == num_requests
        is_good &= row["overhead_p99_ms"] <= MAX_P99_MS.get(num_streams, float("inf"))
    return not is_good


if __name__ == "__main__":
    sys.exit(main())
