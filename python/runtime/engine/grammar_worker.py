"""Tries grammars for `grammar_trials.GrammarTrials`, in a process that one of them may exhaust, hang or crash.

The first line is {"tokenizer", "vocab_size", "eos_token_ids", "limits"}; each further one is {"grammar"} and answered
with {"error"}, empty for one that works, or {"killed"}, the signal that ended its trial. Trials run in a child that is
forked from here, where the tokenizer is: the next one after a fatal grammar need not wait for it to be built again.
Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import llguidance

MAX_MEMORY_BYTES = 2 << 30
CPU_S = 0.25
WALL_S = 0.7  # met where cores are short
MASK_S = 0.05
NICE = 10  # behind the engine, its server and their clients


def trial(tokenizer: llguidance.LLTokenizer, grammar: str, limits: llguidance.LLParserLimits) -> str:
    """Compiles it and asks for its first mask; the error, if there is one."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        return matcher.get_error()
    started = time.thread_time()
    matcher.compute_bitmask()
    if time.thread_time() - started > MASK_S:
        return "to find the first token takes too long; simplify the grammar"
    return matcher.get_error()


def try_all(tokenizer: llguidance.LLTokenizer, limits: llguidance.LLParserLimits, is_trying: mmap.mmap) -> None:
    """Answers lines until there are no more; `is_trying` is 1 while it owes an answer."""
    for line in sys.stdin:
        is_trying[0] = 1
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # their signals end the process
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        error = trial(tokenizer, json.loads(line)["grammar"], limits)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        is_trying[0] = 0
        answer(error=error)


def answer(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # takes no core from who runs when it wakes up


def main() -> None:
    limit()
    given = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(given["tokenizer"], given["vocab_size"], given["eos_token_ids"])
    limits = llguidance.LLParserLimits(**given["limits"])
    del given
    answer(error="")
    is_trying = mmap.mmap(-1, 1)  # shared with the children
    while status := status_of_child(lambda: try_all(tokenizer, limits, is_trying)):
        if is_trying[0]:
            is_trying[0] = 0
            answer(killed=os.WTERMSIG(status))


def status_of_child(program: Callable[[], None]) -> int:
    """Runs it in a fork, which is whole as this process has one thread; 0 when it came to its end."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        program()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
