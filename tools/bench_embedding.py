#!/usr/bin/env python3
"""Throughput of `runtime::Engine` in a C++ program beside that of `LLM`, on a CPU and the built-in model.

    cmake -S tests/embed -B build/tests-embed -Druntime_DIR="$(python -m runtime --cmake-dir)"
    cmake --build build/tests-embed
    tools/bench_embedding.py build/tests-embed/bench_engine [--append FILE]

The two take turns, so that what else the machine does meets both; the row has the medians over the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

from runtime import LLM, SamplingParams
from runtime.bench.rows import append_row, environment


def prompts(num_requests: int, input_len: int, number: int) -> list[list[int]]:
    """As tests/embed/bench_engine.cpp makes them."""
    return [[16 + (i * 7 + j * 3 + number * 11) % 256 for j in range(input_len)] for i in range(num_requests)]


def run_once(llm: LLM, token_ids: list[list[int]], output_len: int) -> float:
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=output_len)
    begin = time.perf_counter()
    llm.generate(token_ids, params, use_tqdm=False)
    return time.perf_counter() - begin


def measure(program: Path, num_requests: int, input_len: int, output_len: int, pairs: int) -> dict[str, float]:
    """Tokens of output per second of both, and their ratio; one pair first to warm up."""
    sizes = [str(size) for size in (num_requests, input_len, output_len)]
    times: list[tuple[float, float]] = []
    with (
        LLM(device="cpu", max_num_seqs=num_requests) as llm,
        subprocess.Popen([program, *sizes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as embedded,
    ):
        assert embedded.stdin and embedded.stdout
        for number in range(pairs + 1):
            python_s = run_once(llm, prompts(num_requests, input_len, number), output_len)
            embedded.stdin.write("\n")
            embedded.stdin.flush()
            times.append((python_s, float(embedded.stdout.readline())))
        embedded.stdin.close()
    python_times, embedded_times = zip(*times[1:])
    tokens = num_requests * output_len
    return {
        "python_tok_s": round(tokens / statistics.median(python_times), 1),
        "tok_s": round(tokens / statistics.median(embedded_times), 1),
        "pct_of_python": round(100 * statistics.median(p / e for p, e in times[1:]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", type=Path, help="build/tests-embed/bench_engine")
    parser.add_argument("--batch", type=int, default=64, help="streams")
    parser.add_argument("--in", type=int, dest="input_len", default=32, help="tokens of each prompt")
    parser.add_argument("--out", type=int, dest="output_len", default=64, help="tokens of each output")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add the row to a .jsonl file")
    args = parser.parse_args()
    found = measure(args.program, args.batch, args.input_len, args.output_len, args.pairs)
    sizes = {"batch": args.batch, "in": args.input_len, "out": args.output_len, "pairs": args.pairs}
    head = {"engine": "runtime", "model": "builtin", "tp": 1, "scenario": f"embedded_b{args.batch}"}
    row = {**head, **sizes, **found, **environment("cpu")}
    print(json.dumps(row))
    if args.append:
        append_row(row, args.append)


if __name__ == "__main__":
    main()
