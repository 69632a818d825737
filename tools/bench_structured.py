"""What hostile grammars cost a neighbour: its time between tokens, quiet and beside them, on the built-in model.

    python tools/bench_structured.py [--seconds 10] [--distinct 10000]

Printed for each kind of neighbour: time between the tokens of one client that streams all the while, in milliseconds,
and how long the bad requests took to end. It fails when the mean grows more than twofold, or an end takes a second.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from runtime import LLM, SamplingParams
from runtime.errors import CapacityError, InvalidRequestError

Structure = dict[str, Any]

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


class Neighbour:
    """Streams answers of 256 tokens, one after the other, and notes when tokens come."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._stop = threading.Event()
        self.gaps: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        params = SamplingParams(max_tokens=256, ignore_eos=True, detokenize=False)
        while not self._stop.is_set():
            last = None
            for _ in self._llm.stream("12+35=", params):
                now = time.perf_counter()
                if last is not None:
                    self.gaps.append((now - last) * 1e3)
                last = now


def refused_after(llm: LLM, structure: Structure) -> float:
    """Seconds until a request ended, in an error or by its 64 tokens."""
    started = time.perf_counter()
    try:
        llm.generate("x", SamplingParams(structured_outputs=structure, max_tokens=64))
    except (InvalidRequestError, CapacityError):
        pass
    return time.perf_counter() - started


def measure(llm: LLM, name: str, load: Callable[[], list[float]]) -> tuple[float, float]:
    with Neighbour(llm) as neighbour:
        ends = load()
    gaps = np.array(neighbour.gaps)
    p50, p99 = np.percentile(gaps, [50, 99])
    slowest = max(ends, default=0.0)
    print(
        f"{name:24} {gaps.mean():8.2f} {p50:8.2f} {p99:8.2f} {gaps.max():8.1f} {len(ends):8} {slowest:10.2f}",
        flush=True,
    )
    return float(gaps.mean()), slowest


def quiet(seconds: float) -> list[float]:
    time.sleep(seconds)
    return []


def repeat(llm: LLM, structure: Structure, seconds: float) -> list[float]:
    """The same kind of request again and again, each one distinct so that no cache helps it."""
    deadline, ends = time.perf_counter() + seconds, []
    for i in itertools.count():
        if time.perf_counter() > deadline:
            break
        ((kind, text),) = structure.items()
        varied = {**text, "title": f"t{i}"} if isinstance(text, dict) else text + ("\n" * (i % 90 + 1))
        ends.append(refused_after(llm, {kind: varied}))
    return ends


def distinct(llm: LLM, count: int) -> list[float]:
    """As many small schemas, eight at a time."""
    schemas: Iterator[Structure] = (
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "integer", "maximum": i}}, "required": [f"p{i}"]}}
        for i in range(count)
    )

    def ask(structure: Structure) -> float:
        started = time.perf_counter()
        llm.generate("x", SamplingParams(structured_outputs=structure, max_tokens=1))
        return time.perf_counter() - started

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, schemas))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind")
    parser.add_argument("--distinct", type=int, default=10_000, help="different schemas")
    args = parser.parse_args()
    print(f"{'beside':24} {'mean ms':>8} {'p50':>8} {'p99':>8} {'max':>8} {'requests':>8} {'slowest s':>10}")
    with LLM() as llm:
        refused_after(llm, {"choice": ["a"]})  # starts what compiles
        alone, _ = measure(llm, "nobody", lambda: quiet(args.seconds))
        found = [measure(llm, name, lambda: repeat(llm, one, args.seconds)) for name, one in HOSTILE.items()]  # noqa: B023
        found.append(measure(llm, f"{args.distinct:,} schemas", lambda: distinct(llm, args.distinct)))
    is_good = all(mean <= 2 * alone for mean, _ in found) and all(slowest < 1.0 for _, slowest in found[:-1])
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
