"""Grammars of structured outputs: tried and compiled by threads of their own, within limits."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

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
MAX_KNOWN = 256
MAX_KNOWN_CHARS = 2 << 20  # of forms and of the grammars that are made of them

_STACK_BYTES = 64 << 20  # more than the main thread of the worker has: what it survived does not end this process
_WHITESPACE = r"[ \t\n\r]{0,32}"  # never endless
_NICE = 5
_MAX_COMPILING = 4  # threads
_POLL_S = 0.2

_Job = TypeVar("_Job")
Done = Callable[["llguidance.LLMatcher | None", "BaseException | None"], None]


class GrammarCompiler:
    """Makes matchers from forms of outputs. Any thread may call it.

    A grammar that was not seen lately is tried in a child process, which it may hang or crash. One that passed is
    compiled here, without the GIL, for each request anew: copies of a matcher share the states that their lexer comes
    to have, so they would share its limits too, and keep what one of them made as long as any of them is kept.
    Nothing is built or started before the first of `prepare` and `compile`, and then by a thread of this.

    Args:
        tokenizer: the model's; None: it has none here.
        vocab_size: the model's, logits of one row.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._why_not = _why_not(tokenizer, eos_token_ids)
        self._new: queue.SimpleQueue[tuple[StructuredOutputsParams, Done]] = queue.SimpleQueue()
        self._tried: queue.SimpleQueue[tuple[str, Done]] = queue.SimpleQueue()
        self._known = _Known()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        if self._why_not is None and tokenizer is not None:
            self._vocabulary = _Vocabulary(tokenizer, vocab_size, list(eos_token_ids))

    def prepare(self) -> None:
        """Has the first request wait for less; returns at once."""
        if self._why_not is None:
            self._start(self._compile_all, max(min((os.cpu_count() or 1) // 4, _MAX_COMPILING), 1))

    def compile(self, form: StructuredOutputsParams, done: Done) -> None:
        """Queues it, behind no grammar that is to be tried if it is known; `done` is called once, perhaps from here,
        with a matcher at its start or with the error.

        Raises:
            ConfigError: structured_outputs cannot be used here.
        """
        if self._why_not is not None:
            raise for_this_caller(self._why_not)
        known = self._known.get(form)
        if isinstance(known, InvalidRequestError):
            _tell(done, None, for_this_caller(known))
        elif known is not None:
            self._tried.put((known, done))
        else:
            self._new.put((form, done))
            self._start(self._try_all, 1 if (os.cpu_count() or 1) <= 4 else 2)
        self.prepare()
        if self._closing.is_set():
            self._cancel()

    def close(self) -> None:
        """Ends the threads and their processes; what waits is told. Idempotent."""
        self._closing.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        self._cancel()

    def _start(self, work: Callable[[], None], count: int) -> None:
        """Threads of this kind, unless they run."""
        name = f"runtime-grammars-{work.__name__.strip('_')}"
        with self._lock:
            if self._closing.is_set() or any(thread.name == name for thread in self._threads):
                return
            before = threading.stack_size(_STACK_BYTES)
            try:
                for _ in range(count):
                    self._threads.append(threading.Thread(target=work, name=name, daemon=True))
                    self._threads[-1].start()
            finally:
                threading.stack_size(before)

    def _cancel(self) -> None:
        for jobs in (self._new, self._tried):
            with contextlib.suppress(queue.Empty):
                while True:
                    _tell(jobs.get_nowait()[1], None, RequestAborted("the engine is closed"))

    # ---- threads -----------------------------------------------------------------------------

    def _try_all(self) -> None:
        _step_back()
        trials = GrammarTrials(lambda: self._vocabulary.start_line)
        trials.start()  # beside what is built here
        for form, done in _until(self._closing, self._new):
            try:
                self._tried.put((self._try(form, trials), done))
            except Exception as error:
                _tell(done, None, error)
        trials.stop()

    def _try(self, form: StructuredOutputsParams, trials: GrammarTrials) -> str:
        """The grammar, once it has passed."""
        self._vocabulary.build()
        known = self._known.get(form)  # by now, perhaps
        if known is None:
            try:
                known = _grammar_of(form)
                trials.check(known)
            except InvalidRequestError as error:  # kept too: it would be as slow the next time
                known = error
            self._known.put(form, known)
        if isinstance(known, InvalidRequestError):
            raise for_this_caller(known)
        return known

    def _compile_all(self) -> None:
        with contextlib.suppress(ConfigError):  # each request is told
            self._vocabulary.build()
        _step_back()
        for grammar, done in _until(self._closing, self._tried):
            try:
                matcher = self._vocabulary.matcher(grammar)
            except Exception as error:
                _tell(done, None, error)
            else:
                _tell(done, matcher, None)


def _step_back() -> None:
    """This thread goes behind the engine's where cores are short."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _until(closing: threading.Event, jobs: queue.SimpleQueue[_Job]) -> Iterator[_Job]:
    while not closing.is_set():
        with contextlib.suppress(queue.Empty):
            yield jobs.get(timeout=_POLL_S)


def _tell(done: Done, matcher: llguidance.LLMatcher | None, error: BaseException | None) -> None:
    try:
        done(matcher, error)
    except Exception:
        logger.exception("a request with structured_outputs failed")


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

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """At its start, and alone.

        Raises:
            InvalidRequestError: it does not compile.
            ConfigError: as `build`.
        """
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self.build(), grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise refusal(matcher.get_error())
        return matcher

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


class _Known:
    """What was found of the forms that were asked for last: a grammar that passed, or why it is refused."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, bool], str | InvalidRequestError] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()

    def get(self, form: StructuredOutputsParams) -> str | InvalidRequestError | None:
        key = (form.kind, form.text, form.disable_any_whitespace)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, form: StructuredOutputsParams, found: str | InvalidRequestError) -> None:
        key = (form.kind, form.text, form.disable_any_whitespace)
        with self._lock:
            if key not in self._found:
                self._found[key] = found
                self._num_chars += _num_chars(form.text, found)
            while len(self._found) > MAX_KNOWN or self._num_chars > MAX_KNOWN_CHARS:
                (_, text, _), old = self._found.popitem(last=False)
                self._num_chars -= _num_chars(text, old)


def _num_chars(text: str, found: str | InvalidRequestError) -> int:
    return len(text) + (len(found) if isinstance(found, str) else 0)


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
