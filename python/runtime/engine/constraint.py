"""What one completion may say next: its grammar's matcher, and what else limits its tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    import llguidance

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
        matcher: of the grammar, at its start; its own.
        num_words: int32 words of a mask.
        eos_token_ids: not allowed before `min_tokens`; nor are stop_token_ids.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, params: SamplingParams, num_words: int, eos_token_ids: Sequence[int]
    ) -> None:
        self.matcher = matcher
        self._num_words = num_words
        self._num_tokens = 0
        self._min_tokens = params.min_tokens
        self._allowed = None if params.allowed_token_ids is None else _bits(params.allowed_token_ids, num_words)
        self._not_yet = ~_bits([*eos_token_ids, *(params.stop_token_ids or ())], num_words)
        self._seconds_left = _START_S

    def fill(self, mask: Words) -> None:
        """Writes the next token's mask, int32 [num_words], bit id % 32 of word id / 32.

        Raises:
            InvalidRequestError: no token is left, or the grammar goes beyond a limit.
        """
        assert mask.flags.c_contiguous and mask.size == self._num_words
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
        if self.matcher.is_error() or not mask.any():
            self._raise_for_no_token()

    def take(self, token_id: int) -> None:
        """The next token was sampled.

        Raises:
            InvalidRequestError: as `fill`.
        """
        self._num_tokens += 1
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
        if self.matcher.is_error():
            raise refusal(self.matcher.get_error())
        what = "min_tokens" if self._num_tokens < self._min_tokens else "allowed_token_ids"
        message = f"{NAME}: after {self._num_tokens} tokens no token is allowed by both the grammar and {what}"
        raise InvalidRequestError(NAME, message=message)


def refusal(error: str) -> InvalidRequestError:
    """What the matcher says, in one line."""
    text = " ".join(error.replace("<non-verbose/>", "").split())
    return InvalidRequestError(NAME, message=f"{NAME}: {text or 'the grammar is refused'}"[:_MAX_MESSAGE_CHARS])


def _bits(token_ids: Sequence[int], num_words: int) -> Words:
    """int32 [num_words] with those bits set; ids beyond them are the scheduler's to refuse."""
    ids = np.asarray(token_ids, dtype=np.int64)
    ids = ids[ids < 32 * num_words]
    words = np.zeros(num_words, dtype=np.uint32)
    np.bitwise_or.at(words, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
    return words.view(np.int32)
