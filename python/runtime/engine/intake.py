"""From a caller's request to the scheduler: its completions, its grammar, and what ends it before its time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.engine.bad_words import BadWords
from runtime.engine.constraint import Constraint
from runtime.engine.deadlines import Deadlines
from runtime.engine.detokenizer import TextStream
from runtime.engine.grammars import GrammarCompiler
from runtime.engine.output_processor import OutputProcessor
from runtime.engine.request import Completion, RequestHandle
from runtime.engine.submission import SubmitOptions
from runtime.errors import DeadlineExceeded, InvalidRequestError, RequestAborted
from runtime.kernels import step_plan as sp
from runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    import llguidance

    from runtime import _core
    from runtime.engine.loading import LoadedModel


class Intake:
    """Submits and aborts requests, from any thread; `expire` and `fail` are the engine thread's.

    Args:
        why_dead: the error that has ended the engine, or None.
    """

    def __init__(
        self, loaded: LoadedModel, scheduler: _core.Scheduler, why_dead: Callable[[], BaseException | None]
    ) -> None:
        self.outputs = OutputProcessor(scheduler.stop, scheduler.abort, self._submit_deferred)
        self._config, self._tokenizer = loaded.config, loaded.tokenizer
        self._vocab_size = loaded.model.vocab_size
        self._eos_token_ids = loaded.eos_token_ids
        self._grammars = GrammarCompiler(loaded.tokenizer, loaded.model.vocab_size, loaded.eos_token_ids)
        self._scheduler = scheduler
        self._why_dead = why_dead
        self._request_ids = itertools.count()
        self._handle_ids = itertools.count()
        self._deadlines = Deadlines()

    def submit(
        self, prompt: str | None, prompt_token_ids: Sequence[int], params: SamplingParams, options: SubmitOptions
    ) -> RequestHandle:
        """As `Engine.submit`."""
        if params.stop_strings and self._tokenizer is None:
            message = "stop strings are found in the text, which skip_tokenizer_init=True leaves out"
            raise InvalidRequestError("stop", params.stop, message=message)
        bad_words = self._bad_words(params)
        banned = bad_words.always if bad_words is not None and _is_static(bad_words, params) else []
        handle_id = str(next(self._handle_ids))
        handle = RequestHandle(handle_id, prompt, prompt_token_ids, params, self._tokenizer, self._abort, options)
        num_completions = 1 if handle.is_score else params.n
        handle.completions = [self._completion(handle, index, banned) for index in range(num_completions)]
        self._add_scoring(handle)
        if params.structure is not None:
            self._compile(handle, bad_words)
        else:
            if bad_words is not None and not banned:
                self._constrain(handle.completions, params, bad_words)
            self._enter(handle)
        self._deadlines.add(handle)
        self._fail_if_dead()
        return handle

    def prepare_grammars(self) -> None:
        """As `Engine.prepare_grammars`."""
        self._grammars.prepare()

    def expire(self) -> None:
        """Ends the requests whose deadline has passed."""
        for handle in self._deadlines.expired(time.perf_counter()):
            error = DeadlineExceeded(
                f"request {handle.request_id} did not finish in deadline_s={handle.options.deadline_s}"
            )
            for completion in handle.parts:
                if not completion.closed:
                    self.fail(completion, error)

    def fail(self, completion: Completion, error: BaseException) -> None:
        """Ends a completion with an error, here and in the scheduler."""
        self.outputs.fail(completion, error)
        self._scheduler.abort(completion.request_id)

    def close(self) -> None:
        """Nothing is compiled any more; what waits for that is ended. Idempotent."""
        self._grammars.close()

    def _completion(self, handle: RequestHandle, index: int, banned_token_ids: Sequence[int]) -> Completion:
        params, text = handle.params, None
        if handle.is_score:
            return Completion(handle, next(self._request_ids), index, params.for_scoring(), None)
        if self._tokenizer is not None and params.detokenize:
            text = TextStream(
                self._tokenizer,
                handle.prompt_token_ids,
                stops=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
                skip_special_tokens=params.skip_special_tokens,
            )
        return Completion(handle, next(self._request_ids), index, params.for_completion(index, banned_token_ids), text)

    def _add_scoring(self, handle: RequestHandle) -> None:
        """What scores the prompt before the completions start; a prompt of one token has nothing to score."""
        if handle.params.prompt_logprobs is None or handle.is_score or len(handle.prompt_token_ids) < 2:
            return
        self._scheduler.validate(handle.prompt_token_ids, handle.completions[0].numbers)  # nothing is scored in vain
        handle.scoring = Completion(handle, next(self._request_ids), -1, handle.params.for_scoring(), None)

    def _bad_words(self, params: SamplingParams) -> BadWords | None:
        if not params.bad_word_strings:
            return None
        if self._tokenizer is None:
            message = "bad_words are tokenised, and skip_tokenizer_init=True leaves the tokenizer out"
            raise InvalidRequestError("bad_words", params.bad_words, message=message)
        return BadWords.of(params.bad_word_strings, self._tokenizer)

    def _constrain(
        self,
        completions: Sequence[Completion],
        params: SamplingParams,
        bad_words: BadWords | None,
        matcher: llguidance.LLMatcher | None = None,
    ) -> None:
        """Each completion's own; its matcher is a copy."""
        for completion in completions:
            completion.constraint = Constraint(
                params,
                self._vocab_size,
                self._eos_token_ids,
                matcher=None if matcher is None else matcher.deep_copy(),
                bad_words=bad_words,
            )

    def _fail_if_dead(self) -> None:
        """The engine ended meanwhile and may not have seen a request."""
        if (error := self._why_dead()) is not None:
            self.outputs.fail_all(error)

    # ---- grammars -------------------------------------------------------------------------

    def _compile(self, handle: RequestHandle, bad_words: BadWords | None) -> None:
        """The scheduler hears of it once its grammar is there."""
        assert handle.params.structure is not None
        handle.is_queued = False
        handle.defer(handle.completions)
        for completion in handle.completions:
            self.outputs.add(completion)
        try:
            self._grammars.compile(handle.params.structure, lambda *found: self._compiled(handle, bad_words, *found))
        except Exception:
            for completion in handle.take_deferred():
                self.outputs.discard(completion)
            raise

    def _compiled(
        self,
        handle: RequestHandle,
        bad_words: BadWords | None,
        matcher: llguidance.LLMatcher | None,
        error: BaseException | None,
    ) -> None:
        """A thread of the grammars: a matcher at its start, or why there is none."""
        if not (completions := handle.take_deferred()):
            return  # aborted meanwhile, or its time is up
        try:
            if matcher is None:
                raise error or RequestAborted("the engine is closed")
            self._constrain(completions, handle.params, bad_words, matcher)
            self._enter(handle)
        except Exception as found:
            for completion in completions:
                self.outputs.fail(completion, found)
            return
        handle.is_queued = True
        handle.notify()
        self._catch_up(handle)

    def _catch_up(self, handle: RequestHandle) -> None:
        """Ends in the scheduler what was ended before the scheduler knew it."""
        self._fail_if_dead()
        for completion in handle.parts:
            if completion.closed:
                self.outputs.discard(completion)
                self._scheduler.abort(completion.request_id)
        if handle.aborted:
            self._abort(handle)

    # ---- the scheduler --------------------------------------------------------------------

    def _enter(self, handle: RequestHandle) -> None:
        if handle.scoring is not None:
            handle.defer(handle.completions)
            self._submit_all([handle.scoring])
        elif not self._waits_for_cache(handle):
            self._submit_all(handle.completions)
        else:
            handle.defer(handle.completions[1:])
            self._submit_all(handle.completions[:1])

    def _waits_for_cache(self, handle: RequestHandle) -> bool:
        """Whether completions 1.. find the prompt's full blocks in the cache once the first one has computed them."""
        caches = self._config.enable_prefix_caching and len(handle.prompt_token_ids) > self._config.block_size
        return caches and len(handle.completions) > 1

    def _submit_all(self, completions: Sequence[Completion]) -> None:
        for i, completion in enumerate(completions):
            handle = completion.handle
            self.outputs.add(completion)
            try:
                self._scheduler.submit(
                    completion.request_id,
                    handle.prompt_token_ids,
                    completion.numbers,
                    cache_salt=handle.options.cache_salt,
                    score_start=1 if completion.index < 0 else handle.options.score_start,
                    priority=handle.options.priority,
                    tenant=handle.options.tenant,
                    is_masked=completion.constraint is not None,
                )
            except Exception:
                self.outputs.discard(completion)
                for submitted in completions[:i]:
                    self._scheduler.abort(submitted.request_id)
                raise

    def _submit_deferred(self, first: Completion) -> None:
        """Engine thread: the prompt of the first completion has been computed, or scored."""
        deferred = first.handle.take_deferred()
        try:
            self._submit_all(deferred)
        except Exception as error:
            for completion in deferred:
                self.outputs.fail(completion, error)
        if first.handle.aborted:  # perhaps before these were there to be aborted
            self._abort(first.handle)

    def _abort(self, handle: RequestHandle) -> None:
        handle.aborted = True
        for completion in handle.take_deferred():
            self.outputs.discard(completion)
            completion.finish("abort")
            completion.close()
        for completion in handle.parts:
            if not completion.closed and self._why_dead() is None:
                self._scheduler.abort(completion.request_id)


def _is_static(bad_words: BadWords, params: SamplingParams) -> bool:
    """Whether the device can hold all words as biases of its own: each is one token, and there is no grammar, which
    would have to know them."""
    num_biases = len(params.logit_bias or ()) + len(bad_words.always)
    return params.structure is None and bad_words.max_tail_len == 0 and num_biases <= sp.MAX_BIAS
