#!/usr/bin/env python3
"""Throughput of `runtime::Engine` in a C++ program beside that of `LLM`: the same requests, in turns.

    cmake -S tests/embed -B build/tests-embed -Druntime_DIR="$(python -m runtime --cmake-dir)"
    cmake --build build/tests-embed
    tools/bench_embedding.py build/tests-embed/bench_engine [--append FILE] [ARGUMENT=VALUE...]

ARGUMENT=VALUE are those of `LLM`; both engines get them, and both are there at once, so a GPU must have room for two
(kv_cache_memory_bytes). Without --scenario: `embedded_b64`, 64 streams of the built-in model with their text; with it
one of the offline scenarios of `runtime bench suite`. Turns are pairs, so that what else the machine does meets both;
every other pair begins with the other engine. The row has medians over pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import LLM, SamplingParams
from runtime.bench.rows import append_row, environment
from runtime.bench.scenarios import Request, fit, offline_scenario, prompts_of

STREAMS = (Request(own_len=32, output_len=64),) * 64


@dataclass(frozen=True)
class Load:
    """What both engines are asked in each turn."""

    name: str
    requests: Sequence[Request]
    temperature: float
    detokenize: bool

    @property
    def output_tokens(self) -> int:
        return sum(one.output_len for one in self.requests)

    def lengths(self) -> dict[str, int]:
        """`in` and `out`, where they are the same for all requests."""
        first = self.requests[0]
        return {"in": first.input_len, "out": first.output_len} if set(self.requests) == {first} else {}

    def params(self) -> list[SamplingParams]:
        def one(output_len: int) -> SamplingParams:
            return SamplingParams(
                temperature=self.temperature, max_tokens=output_len, ignore_eos=True, detokenize=self.detokenize
            )

        return [one(request.output_len) for request in self.requests]

    def prompts(self, vocab_size: int, turn: int) -> list[list[int]]:
        """Of one turn: no turn finds the prefixes of another."""
        return prompts_of(self.requests, vocab_size, seed=turn)


@dataclass(frozen=True)
class Cost:
    """Of one turn of one engine, in seconds."""

    wall: float
    cpu: float


class Program:
    """bench_engine, to which it speaks by pipes."""

    def __init__(self, path: Path, arguments: dict[str, Any]) -> None:
        words = [f"{name}={json.dumps(value)}".replace('"', "") for name, value in arguments.items()]
        self._process = subprocess.Popen([path, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, load: Load, prompts: list[list[int]]) -> Cost:
        assert self._process.stdin and self._process.stdout
        for one, prompt in zip(load.requests, prompts):
            head = f"{one.output_len} {load.temperature} {int(load.detokenize)} "
            self._process.stdin.write(head + " ".join(map(str, prompt)) + "\n")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, cpu = self._process.stdout.readline().split()
        return Cost(float(wall), float(cpu))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def run_python(llm: LLM, load: Load, prompts: list[list[int]]) -> Cost:
    params = load.params()
    wall, cpu = time.perf_counter(), time.process_time()
    llm.generate(prompts, params, use_tqdm=False)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def turns(llm: LLM, program: Program, load: Load, count: int) -> list[tuple[Cost, Cost]]:
    """(Python's, the program's) of that many pairs, after one to warm up."""
    costs = []
    for turn in range(count + 1):
        prompts = load.prompts(llm.vocab_size, turn)
        if turn % 2:
            embedded = program.run(load, prompts)
            costs.append((run_python(llm, load, prompts), embedded))
        else:
            costs.append((run_python(llm, load, prompts), program.run(load, prompts)))
    return costs[1:]


def measure(path: Path, load: Load, arguments: dict[str, Any], pairs: int) -> dict[str, Any]:
    """The row, without head and environment; `pct_of_python` is of throughput, by wall clock and by CPU seconds."""
    program = Program(path, arguments)
    try:
        with LLM(**arguments) as llm:
            costs = turns(llm, program, load, pairs)
            dtype = llm.dtype
    finally:
        program.close()

    def median(of: Callable[[Cost, Cost], float]) -> float:
        return statistics.median(of(python, embedded) for python, embedded in costs)

    return {
        "batch": len(load.requests),
        **load.lengths(),
        "pairs": pairs,
        "dtype": dtype,
        "python_tok_s": round(load.output_tokens / median(lambda p, e: p.wall), 1),
        "tok_s": round(load.output_tokens / median(lambda p, e: e.wall), 1),
        "pct_of_python": round(100 * median(lambda p, e: p.wall / e.wall), 1),
        "python_cpu_s": round(median(lambda p, e: p.cpu), 3),
        "cpu_s": round(median(lambda p, e: e.cpu), 3),
        "pct_of_python_cpu": round(100 * median(lambda p, e: p.cpu / e.cpu), 1),
    }


def load_of(args: argparse.Namespace) -> Load:
    if args.scenario is None:
        return Load(f"embedded_b{len(STREAMS)}", STREAMS, 0.0, True)
    chosen = offline_scenario(args.scenario).scaled(args.scale)
    return Load(f"embedded_{args.scenario}", chosen.requests, chosen.temperature, False)


def value_of(text: str) -> Any:
    """As bench_engine reads it."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", type=Path, help="build/tests-embed/bench_engine")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT=VALUE", help="of LLM")
    parser.add_argument("--scenario", help="an offline scenario of `runtime bench suite`, e.g. mixed_256")
    parser.add_argument("--scale", type=int, default=1, help="of it, 1/N of the requests and of their lengths")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    parser.add_argument("--tag", default="builtin", help="`model` of the row")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add the row to a .jsonl file")
    args = parser.parse_intermixed_args()  # ARGUMENT=VALUE may stand behind options
    load = load_of(args)
    given = {name: value_of(value) for name, _, value in (word.partition("=") for word in args.arguments)}
    arguments = {"device": "cpu", "seed": 0, **fit(load.requests), **given}
    found = measure(args.program, load, arguments, args.pairs)
    head = {"engine": "runtime", "model": args.tag, "tp": 1, "scenario": load.name}
    row = {**head, **found, **environment(arguments["device"])}
    print(json.dumps(row))
    if args.append:
        append_row(row, args.append)


if __name__ == "__main__":
    main()
