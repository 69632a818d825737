"""Grammars of structured outputs: compiled by threads of their own, within limits, and kept for the next request."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.constraint import refusal
from runtime.engine.grammar_trials import GrammarTrials
from runtime.errors import ConfigError, InvalidRequestError, RequestAborted, for_this_caller
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

_STACK_BYTES = 64 << 20  # more than the main thread of the worker has: what it survived does not end this process
_WHITESPACE = r"[ \t\n\r]{0,32}"  # never endless
_NICE = 5

Done = Callable[["llguidance.LLMatcher | None", "BaseException | None"], None]


class GrammarCompiler:
    """Makes matchers from forms of outputs. Any thread may call it.

    A grammar is tried in a child process first, which it may hang or crash, and then compiled here, without the GIL.
    Nothing is built or started before the first of `prepare` and `compile`, and then by a thread of this.

    Args:
        tokenizer: the model's; None: it has none here.
        vocab_size: the model's, logits of one row.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._why_not = _why_not(tokenizer, eos_token_ids)
        self._jobs: queue.SimpleQueue[tuple[StructuredOutputsParams, Done]] = queue.SimpleQueue()
        self._cache = _Cache()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        if self._why_not is None and tokenizer is not None:
            self._vocabulary = _Vocabulary(tokenizer, vocab_size, list(eos_token_ids))

    def prepare(self) -> None:
        """Has the first request wait for less; returns at once."""
        if self._why_not is None:
            self._start_threads()

    def compile(self, form: StructuredOutputsParams, done: Done) -> None:
        """Has `done` called once, with a matcher at its start or with the error: at once for a form that was compiled
        before, which waits for no other, else by another thread.

        Raises:
            ConfigError: structured_outputs cannot be used here.
        """
        if self._why_not is not None:
            raise for_this_caller(self._why_not)
        known = None if self._closing.is_set() else self._cache.get(_key(form))
        if known is not None:
            _tell(known, done)
            return
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
        trials = GrammarTrials(lambda: self._vocabulary.start_line)
        if not self._jobs.empty():
            trials.start()  # beside what is built here
        with contextlib.suppress(ConfigError):  # each request is told
            self._vocabulary.build()
        with contextlib.suppress(OSError, AttributeError):  # behind the engine's thread where cores are short
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._closing.is_set():
            with contextlib.suppress(queue.Empty):
                form, done = self._jobs.get(timeout=0.2)
                self._do(form, done, trials)
        trials.stop()

    def _do(self, form: StructuredOutputsParams, done: Done, trials: GrammarTrials) -> None:
        found: llguidance.LLMatcher | Exception | None = self._cache.get(_key(form))
        if found is None:
            try:
                found = self._compile(_grammar_of(form), trials)
            except Exception as error:
                found = error
            if not isinstance(found, Exception) or isinstance(found, InvalidRequestError):  # as slow the next time
                self._cache.put(_key(form), found)
        _tell(found, done)

    def _compile(self, grammar: str, trials: GrammarTrials) -> llguidance.LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        tokenizer = self._vocabulary.build()
        trials.check(grammar)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise refusal(matcher.get_error())
        return matcher


class _Vocabulary:
    """The tokenizer in llguidance's form, built once, by whoever comes first."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._given = tokenizer, vocab_size, eos_token_ids
        self._lock = threading.Lock()
        self._built: llguidance.LLTokenizer | ConfigError | None = None

    @functools.cached_property
    def start_line(self) -> str:
        """What a process needs to build the same."""
        tokenizer, vocab_size, eos_token_ids = self._given
        given = {"tokenizer": tokenizer.to_json(), "vocab_size": vocab_size, "eos_token_ids": eos_token_ids}
        return json.dumps({**given, "limits": LIMITS})

    def build(self) -> llguidance.LLTokenizer:
        """Takes most of a second for a vocabulary of 128k, with the GIL.

        Raises:
            ConfigError: llguidance cannot use this tokenizer.
        """
        with self._lock:
            if self._built is None:
                self._built = self._build()
        if isinstance(self._built, ConfigError):
            raise for_this_caller(self._built)
        return self._built

    def _build(self) -> llguidance.LLTokenizer | ConfigError:
        import llguidance

        tokenizer, vocab_size, eos_token_ids = self._given
        try:
            return llguidance.LLTokenizer(tokenizer.to_json(), vocab_size, eos_token_ids)
        except Exception as error:
            return ConfigError(f"structured_outputs cannot be used with this model's tokenizer: {error}"[:300])


def _tell(found: llguidance.LLMatcher | Exception, done: Done) -> None:
    """One that is kept is not to be used but to be copied."""
    try:
        if isinstance(found, Exception):
            done(None, for_this_caller(found))
        else:
            done(found.deep_copy(), None)
    except Exception:
        logger.exception("a request with structured_outputs failed")


_Key = tuple[str, str, bool]


def _key(form: StructuredOutputsParams) -> _Key:
    return form.kind, form.text, form.disable_any_whitespace


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
