"""Tries grammars for `grammars.GrammarCompiler`, in a process of its own that one of them may exhaust, hang or crash.

The first line is {"tokenizer", "vocab_size", "eos_token_ids", "limits"}; each further one is {"grammar"} and answered
with {"error"}, empty for one that works. What takes more than CPU_S kills the process. Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time

import llguidance

MAX_MEMORY_BYTES = 2 << 30
CPU_S = 0.25
MASK_S = 0.05


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


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(given["tokenizer"], given["vocab_size"], given["eos_token_ids"])
    limits = llguidance.LLParserLimits(**given["limits"])
    print(json.dumps({"error": ""}), flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process
        error = trial(tokenizer, json.loads(line)["grammar"], limits)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main()
