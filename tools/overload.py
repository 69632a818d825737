"""Goodput of the built-in model's server at five times its capacity, beside the best that it has at any rate.

    python tools/overload.py [--seconds S] [--append FILE]

The server has its defaults, but for the number of rows. Its first seconds at 5x count, in which it takes what might be
a burst, so that run is the longest. Figures from a machine that does other things besides are of no use.
Prints one JSON row; fails when goodput at 5x is below 90 % of the best, or a refusal has no Retry-After.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.bench.load.spawn import SpawnedServer
from runtime.bench.rows import append_row, environment

# the MLPerf limits for a server of an 8B model
SLO_TTFT_MS, SLO_ITL_MS = 2000, 100
MAX_NUM_SEQS = 64
INPUT_LEN, OUTPUT_LEN = 24, 24  # tokens
SHARES = (0.8, 1.0, 1.5, 2.5)  # of the capacity, at one of which goodput is best
OVERLOAD, TIMES_AS_LONG = 5, 5
MIN_PCT_OF_BEST = 90.0

Row = dict[str, Any]


def load(url: str, *flags: object) -> Row:
    """The row of `runtime bench serve`."""
    lengths = ["--in", str(INPUT_LEN), "--out", str(OUTPUT_LEN), "--ignore-eos"]
    limits = ["--slo-ttft", str(SLO_TTFT_MS), "--slo-itl", str(SLO_ITL_MS)]
    command = [sys.executable, "-m", "runtime", "bench", "serve", "--json", "--base-url", url, *lengths, *limits]
    done = subprocess.run([*command, *map(str, flags)], stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(seconds: float) -> Row:
    with SpawnedServer({"max_num_seqs": MAX_NUM_SEQS}) as server:
        capacity = load(server.url, "--concurrency", MAX_NUM_SEQS, "--duration", seconds / 2)["requests_per_s"]
        runs = [load(server.url, "--rate", share * capacity, "--duration", seconds) for share in SHARES]
        best, best_share = max((run["goodput_per_s"], share) for run, share in zip(runs, SHARES))
        row = load(server.url, "--rate", OVERLOAD * capacity, "--duration", TIMES_AS_LONG * seconds)
    asked = {"max_num_seqs": MAX_NUM_SEQS, "in": INPUT_LEN, "out": OUTPUT_LEN}
    found = {"capacity_per_s": capacity, "best_goodput_per_s": best, "best_at": best_share, "overload": OVERLOAD}
    kept = {name: row.get(name) for name in KEPT}
    pct = round(100 * row["goodput_per_s"] / best, 1)
    head = {"engine": "runtime", "model": "builtin", "tp": 1, "scenario": "overload", **asked}
    return {**head, **found, **kept, "pct_of_best": pct, **environment("cpu")}


KEPT = (
    *("slo_ttft_ms", "slo_itl_ms", "goodput_per_s", "slo_met_pct", "requests", "succeeded", "refused_429"),
    *(
        "s",
        "with_retry_after",
        "retry_after_p50_s",
        "errors",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "tpot_p99_ms",
        "client_cpu_pct",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=12.0, help=f"of each rate, {TIMES_AS_LONG} times as long at 5x; default: 12"
    )
    parser.add_argument("--append", type=Path, metavar="FILE")
    args = parser.parse_args()
    row = measure(args.seconds)
    print(json.dumps(row))
    if args.append is not None:
        append_row(row, args.append)
    is_polite = row["refused_429"] == row["with_retry_after"] and not row["errors"]
    return not (is_polite and row["pct_of_best"] >= MIN_PCT_OF_BEST)


if __name__ == "__main__":
    sys.exit(main())
