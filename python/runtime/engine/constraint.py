"""What one completion may say next: its grammar's matcher, its bad words, and what else limits its tokens."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    import llguidance

    from runtime.engine.bad_words import BadWords
    from runtime.sampling_params import SamplingParams

Words = npt.NDArray[np.int32]

# What matching may cost, so that one grammar does not hold up all requests of a step: seconds of this thread's time.
_START_S = 0.05
_TOKEN_S = 0.002

_MAX_MESSAGE_CHARS = 300
NAME = "structured_outputs"


class Constraint:
    """Follows the tokens of one completion. Its state is what the host knows of its output: preemption does not touch
    it. Engine thread only, once made.

    Args:
        vocab_size: the mask has a bit for each id below it.
        eos_token_ids: not allowed before `min_tokens`, unless they are ignored; nor are stop_token_ids.
        matcher: of the grammar, at its start; its own. None: any text.
        bad_words: of the request; None: it has none.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        matcher: llguidance.LLMatcher | None = None,
        bad_words: BadWords | None = None,
    ) -> None:
        self.matcher = matcher
        self._vocab_size, num_words = vocab_size, -(-vocab_size // 32)
        self._num_words = num_words
        self._num_tokens = 0
        self._min_tokens = params.min_tokens
        self._allowed = self._always_allowed(params, bad_words)
        limits = {"allowed_token_ids": params.allowed_token_ids, "bad_words": bad_words}
        self._limits = [name for name, given in limits.items() if given is not None]
        ends = [*(() if params.ignore_eos else eos_token_ids), *(params.stop_token_ids or ())]
        self._not_yet = ~_bits(ends, num_words)
        self._bad_words = bad_words
        self._tail: deque[int] = deque(maxlen=0 if bad_words is None else bad_words.max_tail_len)
        self._seconds_left = _START_S

    def _always_allowed(self, params: SamplingParams, bad_words: BadWords | None) -> Words | None:
        """A mask of its own, whatever the output is; None: of everything."""
        allowed = None if params.allowed_token_ids is None else _bits(params.allowed_token_ids, self._num_words)
        if bad_words is not None and bad_words.always:
            allowed = _all_bits(self._vocab_size) if allowed is None else allowed
            allowed = allowed & ~_bits(bad_words.always, self._num_words)
        return allowed

    def fill(self, mask: Words) -> None:
        """Writes the next token's mask, int32 [ceil(vocab / 32)], bit id % 32 of word id / 32.

        Raises:
            InvalidRequestError: no token is left, or the grammar goes beyond a limit.
        """
        assert mask.flags.c_contiguous and mask.size == self._num_words
        if self.matcher is None:
            mask[:] = _all_bits(self._vocab_size)
        else:
            started = time.thread_time()
            self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            self._charge(time.thread_time() - started)
        self.narrow(mask)

    def narrow(self, mask: Words) -> None:
        """What is left to do with a mask that others have had the matcher write; raises as `fill`."""
        if self._allowed is not None:
            mask &= self._allowed
        if self._num_tokens < self._min_tokens:
            mask &= self._not_yet
        if self._bad_words is not None and (banned := self._bad_words.after(self._tail)):
            mask &= ~_bits(banned, self._num_words)
        if (self.matcher is not None and self.matcher.is_error()) or not mask.any():
            self._raise_for_no_token()

    def take(self, token_id: int) -> None:
        """The next token was sampled.

        Raises:
            InvalidRequestError: as `fill`.
        """
        self._num_tokens += 1
        self._tail.append(token_id)
        if self.matcher is None:
            return
        started = time.thread_time()
        accepts = self.matcher.consume_token(token_id)
        self._charge(time.thread_time() - started)
        if not accepts:
            raise refusal(self.matcher.get_error())

    def _charge(self, seconds: float) -> None:
        self._seconds_left = min(self._seconds_left + _TOKEN_S - seconds, _START_S)
        if self._seconds_left < 0.0:
            message = f"{NAME}: matching takes more than {_TOKEN_S * 1e3:g} ms a token; simplify the grammar"
            raise InvalidRequestError(NAME, message=message)

    def _raise_for_no_token(self) -> None:
        if self.matcher is not None and self.matcher.is_error():
            raise refusal(self.matcher.get_error())
        param = NAME if self.matcher is not None else "bad_words"
        names = [*(["the grammar"] if self.matcher is not None else []), *self._limits]
        if self._num_tokens < self._min_tokens:
            names.append("min_tokens")
        together = f"{'both ' if len(names) == 2 else ''}{' and '.join(names)}"
        message = f"{param}: after {self._num_tokens} tokens no token is allowed by {together}"
        raise InvalidRequestError(param, message=message)


def refusal(error: str) -> InvalidRequestError:
    """What the matcher says, in one line."""
    text = " ".join(error.replace("<non-verbose/>", "").split())
    return InvalidRequestError(NAME, message=f"{NAME}: {text or 'the grammar is refused'}"[:_MAX_MESSAGE_CHARS])


@functools.cache
def _all_bits(vocab_size: int) -> Words:
    """int32 [ceil(vocab / 32)]: every id of the vocabulary."""
    words = np.full(-(-vocab_size // 32), 0xFFFFFFFF, dtype=np.uint32)
    words[-1] >>= np.uint32(-vocab_size % 32)
    return words.view(np.int32)


def _bits(token_ids: Sequence[int], num_words: int) -> Words:
    """int32 [num_words] with those bits set; ids beyond them are the scheduler's to refuse."""
    ids = np.asarray(token_ids, dtype=np.int64)
    ids = ids[ids < 32 * num_words]
    words = np.zeros(num_words, dtype=np.uint32)
    np.bitwise_or.at(words, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
    return words.view(np.int32)
