#!/usr/bin/env python3
"""The scenarios of the field on two engines that take turns, so that what else the machine does meets both.

    OMP_NUM_THREADS=1 tools/bench_peers.py [--peer transformers] [--scale 16] [--pairs 5] [--append FILE]

A row an engine and scenario: its median run, and `time_ratio`, the median over the pairs of its time to the runtime's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from runtime.bench.engines import BenchEngine
from runtime.bench.rows import Row, append_row
from runtime.bench.scenarios import SUITES, fit
from runtime.bench.suite import Bench, measure

NAMES = [name for name in SUITES["field"] if name != "startup"]


def time_of(row: Row) -> float:
    return float(row["tpot_ms"] if "tpot_ms" in row else row["s"])


def compare(benches: list[Bench], pairs: int) -> Iterator[Row]:
    """Two rows a scenario; the first of the benches is what the other one is compared with."""
    limits = [fit(benches[0].requests_of(name)) for name in NAMES]
    limit = {key: max(one[key] for one in limits) for key in limits[0]}
    engines = [bench.open(limit) for bench in benches]
    try:
        for name in NAMES:
            yield from _scenario(name, benches, engines, pairs)
    finally:
        for engine in engines:
            engine.close()


def _scenario(name: str, benches: list[Bench], engines: list[BenchEngine], pairs: int) -> Iterator[Row]:
    turns = [[measure(bench, engine, name) for bench, engine in zip(benches, engines)] for _ in range(pairs)]
    for i, (bench, engine) in enumerate(zip(benches, engines)):
        median = sorted((turn[i] for turn in turns), key=time_of)[pairs // 2]
        ratio = statistics.median(time_of(turn[i]) / time_of(turn[0]) for turn in turns)
        measured = {**median, "pairs": pairs, "time_ratio": round(ratio, 3)}
        measured["runs"] = {"tpot_ms" if "tpot_ms" in median else "s": [time_of(turn[i]) for turn in turns]}
        yield bench.row(engine, name, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", metavar="DIR", help="folder of a checkpoint; default: the built-in model")
    parser.add_argument("--peer", default="transformers", help="transformers or vllm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, with memory for both engines")
    parser.add_argument("--scale", type=int, default=16, help="divides requests and lengths")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, after one that warms up")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add the rows to a .jsonl file")
    args = parser.parse_args()
    ours = Bench("runtime", args.model, {"device": args.device}, repeat=1, scale=args.scale)
    for row in compare([ours, replace(ours, engine=args.peer)], args.pairs):
        print(json.dumps(row), flush=True)
        if args.append:
            append_row(row, args.append)


if __name__ == "__main__":
    main()
