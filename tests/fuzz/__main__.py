"""Seeded cases against one parser, under a memory limit: python tests/fuzz PARSER [--seed N] [--cases N] [--seconds S].

Case i follows from the number `--seed` + i alone. The first that fails ends the run with the command that replays it.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

PARSERS = ("safetensors_header", "config_json", "stop_strings", "detokenizer")
MEMORY_BYTES = 256 << 20  # of a case, beside what imports and earlier cases hold
CASE_SECONDS = 10
_WARM_UP = 20

# draws one case and checks what the parser makes of it; whatever it raises is a finding
Case = Callable[[Random], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parser", choices=PARSERS)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, default=10**6, help="at most so many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins later")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        return watch(args.parser, lambda begun: work(args, Path(folder), begun))


def watch(name: str, work: Callable[[mmap.mmap], int]) -> int:
    """Runs `work` in a child, and names the case that it was at when native code ends it."""
    begun = mmap.mmap(-1, 8)  # shared: the seed of the case that has begun
    child = os.fork()
    if child == 0:
        os._exit(work(begun))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        report(name, int.from_bytes(begun[:], "little"), f"ended by {signal.Signals(-code).name}")
    return min(abs(code), 1)


def work(args: argparse.Namespace, folder: Path, begun: mmap.mmap) -> int:
    case: Case = importlib.import_module(args.parser).make(folder)
    for seed in range(_WARM_UP):  # what is imported late, too
        case(Random(-1 - seed))
    limit_memory()
    code = run(case, args.parser, begun, args.seed, args.cases, args.seconds)
    sys.stdout.flush()
    return code


def run(case: Case, name: str, begun: mmap.mmap, first: int, num_cases: int, seconds: float) -> int:
    """0 when all cases passed, 1 after the first that failed."""
    start, seed = time.monotonic(), first
    signal.signal(signal.SIGALRM, _too_slow)
    while seed < first + num_cases and time.monotonic() - start < seconds:
        begun[:] = seed.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
        try:
            case(Random(seed))
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            traceback.print_exc()
            report(name, seed, type(error).__name__)
            return 1
        seed += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{name}: {seed - first} cases in {time.monotonic() - start:.0f} s")
    return 0


def report(name: str, seed: int, what: str) -> None:
    print(f"{name}: seed {seed}: {what}; alone: python tests/fuzz {name} --seed {seed} --cases 1", file=sys.stderr)
    sys.stderr.flush()


def limit_memory() -> None:
    """From now a case that needs more than MEMORY_BYTES fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_slow(number: int, frame: object) -> None:
    raise TimeoutError(f"a case ran longer than {CASE_SECONDS} s")


def _memory_folder() -> str | None:
    """Where the files of the cases cost no disk, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())
