"""Grammars of structured outputs: compiled by threads of their own, within limits, and kept for the next request."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engine.constraint import NAME, refusal
from runtime.errors import CapacityError, ConfigError, InvalidRequestError, RequestAborted, for_this_caller
from runtime.line_process import LineProcess
from runtime.log import get_logger

if TYPE_CHECKING:
    import llguidance

    from runtime.structured_outputs import StructuredOutputsParams
    from runtime.tokenizer import Tokenizer

logger = get_logger(__name__)

# llguidance's own limits: fuel bounds the time of a mask, to 10 or 20 ms but where the text that is forced next is
# very long, and states the memory (2 kB each)
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # which repeat the grammar
}
# of the cache; a compiled grammar takes some 50 kB and about 20 bytes for each character
MAX_CACHED = 256
MAX_CACHED_CHARS = 1 << 20

_WORKER = Path(__file__).with_name("grammar_worker.py")
_START_TIMEOUT_S = 60.0
_TRIAL_TIMEOUT_S = 0.9  # the worker's own limit is of CPU time; this one is met where cores are short
_STACK_BYTES = 64 << 20  # more than the main thread of the worker has: what it survived does not end this process
_WHITESPACE = r"[ \t\n\r]{0,32}"  # never endless
_NICE = 5

Done = Callable[["llguidance.LLMatcher | None", "BaseException | None"], None]


class GrammarCompiler:
    """Makes matchers from forms of outputs. Any thread may call it.

    A grammar is tried in a child process first, which it may hang or crash, and then compiled here, without the GIL.

    Args:
        tokenizer: the model's; None: it has none here.
        vocab_size: the model's, logits of one row.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._why_not = _why_not(tokenizer, eos_token_ids)
        self._jobs: queue.SimpleQueue[tuple[StructuredOutputsParams, Done]] = queue.SimpleQueue()
        self._cache = _Cache()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        if self._why_not is None and tokenizer is not None:
            self._lock = threading.Lock()
            self._start_line = json.dumps(
                {
                    "tokenizer": tokenizer.to_json(),
                    "vocab_size": vocab_size,
                    "eos_token_ids": list(eos_token_ids),
                    "limits": LIMITS,
                }
            )
            self._load(tokenizer.to_json(), vocab_size, list(eos_token_ids))

    def _load(self, tokenizer: str, vocab_size: int, eos_token_ids: list[int]) -> None:
        # before the engine is ready: it takes most of a second for a vocabulary of 128k, and keeps the GIL
        import llguidance

        self._limits = llguidance.LLParserLimits(**LIMITS)
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer, vocab_size, eos_token_ids)
        except Exception as error:
            self._why_not = ConfigError(f"structured_outputs cannot be used with this model's tokenizer: {error}"[:300])

    def compile(self, form: StructuredOutputsParams, done: Done) -> None:
        """Queues it; `done` is called once, by another thread, with a matcher at its start or with the error.

        Raises:
            ConfigError: structured_outputs cannot be used here.
        """
        if self._why_not is not None:
            raise for_this_caller(self._why_not)
        self._jobs.put((form, done))
        self._start_threads()
        if self._closing.is_set():
            self._cancel()

    def close(self) -> None:
        """Ends the threads and their processes; what waits is told. Idempotent."""
        self._closing.set()
        self._cancel()
        for thread in self._threads:
            thread.join()

    def _start_threads(self) -> None:
        with self._lock:
            if self._threads:
                return
            before = threading.stack_size(_STACK_BYTES)
            try:
                for _ in range(1 if (os.cpu_count() or 1) <= 4 else 2):
                    self._threads.append(threading.Thread(target=self._run, name="runtime-grammars", daemon=True))
                    self._threads[-1].start()
            finally:
                threading.stack_size(before)

    def _cancel(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()[1](None, RequestAborted("the engine is closed"))

    # ---- a compiling thread -----------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # behind the engine's thread where cores are short
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        trials = _Trials(self._start_line)
        while not self._closing.is_set():
            with contextlib.suppress(queue.Empty):
                form, done = self._jobs.get(timeout=0.2)
                self._do(form, done, trials)
        trials.stop()

    def _do(self, form: StructuredOutputsParams, done: Done, trials: _Trials) -> None:
        matcher, error = None, None
        try:
            matcher = self._matcher(form, trials).deep_copy()
        except Exception as found:
            error = found
        try:
            done(matcher, error)
            trials.start()
        except Exception:
            logger.exception("a request with structured_outputs failed")

    def _matcher(self, form: StructuredOutputsParams, trials: _Trials) -> llguidance.LLMatcher:
        """At its start; not to be used but to be copied."""
        key = (form.kind, form.text, form.disable_any_whitespace)
        found = self._cache.get(key)
        if found is None:
            try:
                found = self._compile(_grammar_of(form), trials)
            except InvalidRequestError as error:  # kept too: it would be as slow the next time
                found = error
            self._cache.put(key, found)
        if isinstance(found, InvalidRequestError):
            raise for_this_caller(found)
        return found

    def _compile(self, grammar: str, trials: _Trials) -> llguidance.LLMatcher:
        import llguidance

        trials.check(grammar)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise refusal(matcher.get_error())
        return matcher


class _Trials:
    """The child process of one thread."""

    def __init__(self, start_line: str) -> None:
        self._start_line = start_line
        self._process: LineProcess | None = None

    def start(self) -> LineProcess:
        """The process, which may have to be started again after a grammar has ended it."""
        if self._process is None:
            process = LineProcess(_WORKER)
            if process.ask(self._start_line, _START_TIMEOUT_S) is None:
                process.stop()
                raise CapacityError("the process that tries grammars did not start", hint="is there memory left?")
            self._process = process
        return self._process

    def check(self, grammar: str) -> None:
        """Tries one.

        Raises:
            InvalidRequestError: it does not compile, or not within the limits of the process.
            CapacityError: the process did not get the time to tell.
        """
        process = self.start()
        answer = process.ask(json.dumps({"grammar": grammar}), _TRIAL_TIMEOUT_S)
        was_killed = process.has_ended
        if answer is None:
            self.stop()
            if not was_killed:
                message = f"no core was free to compile the grammar within {_TRIAL_TIMEOUT_S} s"
                raise CapacityError(message, hint="retry later, or simplify the grammar")
            message = f"{NAME}: the grammar does not compile in little time and memory; simplify it"
            raise InvalidRequestError(NAME, message=message)
        if answer["error"]:
            raise refusal(answer["error"])

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


_Key = tuple[str, str, bool]


class _Cache:
    """The grammars used last, by what they were made of."""

    def __init__(self) -> None:
        self._found: OrderedDict[_Key, Any] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()

    def get(self, key: _Key) -> llguidance.LLMatcher | InvalidRequestError | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: _Key, value: llguidance.LLMatcher | InvalidRequestError) -> None:
        with self._lock:
            if key not in self._found:
                self._num_chars += len(key[1])
            self._found[key] = value
            while len(self._found) > MAX_CACHED or self._num_chars > MAX_CACHED_CHARS:
                (_, text, _), _ = self._found.popitem(last=False)
                self._num_chars -= len(text)


def _why_not(tokenizer: Tokenizer | None, eos_token_ids: Sequence[int]) -> ConfigError | None:
    if tokenizer is None:
        return ConfigError("structured_outputs needs a tokenizer", hint="skip_tokenizer_init=True leaves it out")
    if importlib.util.find_spec("llguidance") is None:
        return ConfigError("structured_outputs needs llguidance", hint="pip install 'runtime-llm[structured]'")
    if not eos_token_ids:
        message = (
            "structured_outputs needs an end-of-sequence token, which ends the output; the model's folder has none"
        )
        return ConfigError(message, hint="eos_token_id in generation_config.json")
    return None


def _grammar_of(form: StructuredOutputsParams) -> str:
    """In llguidance's own words."""
    from llguidance import LLMatcher

    if form.kind == "json":
        spaces = {"whitespace_flexible": False} if form.disable_any_whitespace else {"whitespace_pattern": _WHITESPACE}
        try:
            return LLMatcher.grammar_from_json_schema(form.text, overrides=spaces)  # type: ignore[arg-type]
        except ValueError as error:
            raise refusal(str(error)) from None
    if form.kind == "regex":
        return LLMatcher.grammar_from_regex(form.text)
    if form.kind == "choice":
        return LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in json.loads(form.text))
        )
    return LLMatcher.grammar_from_lark(form.text)
