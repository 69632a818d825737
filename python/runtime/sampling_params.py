"""How the tokens of a request are chosen and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime import _core
from runtime.errors import InvalidRequestError, did_you_mean
from runtime.structured_outputs import StructuredOutputsParams

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LEN = 256  # characters
MAX_BAD_WORDS = 128
MAX_BAD_WORD_LEN = 256  # characters


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request; names and meanings are vLLM's and OpenAI's.

    All numbers are validated by `_core.RequestParams` alone, which names the field, the limit and the nearest value.

    Args:
        n: completions of the prompt; completion i uses seed + i.
        temperature: 0 is greedy.
        top_p, top_k, min_p: filters; top_k of 0 or -1, top_p of 1 and min_p of 0 are off.
        presence_penalty, frequency_penalty: taken off the logits of tokens in the output so far.
        repetition_penalty: divides the logits of tokens in prompt and output; 1 is off.
        seed: None: the engine's seed and the request's number make one.
        stop: strings that end the output.
        stop_token_ids: tokens that end the output.
        ignore_eos: end-of-sequence tokens do not end the output.
        max_tokens: most tokens of output; None: as many as the model's length allows.
        min_tokens: no end before that many tokens.
        logprobs: top tokens per position in `CompletionOutput.logprobs`, the sampled one always included.
        prompt_logprobs: likewise for the tokens of the prompt, in `RequestOutput.prompt_logprobs`. The prompt is then
            computed even where it is cached.
        logit_bias: added to the logits of these token ids.
        allowed_token_ids: only these may be sampled.
        bad_words: texts that the output must not contain. Each is tokenised as it is and behind a space; of a sequence
            of n tokens the last one is not sampled behind the first n - 1. Other tokens may spell the same text.
        structured_outputs: the form that the output must have; a dict of its arguments will do. An answer that stops,
            rather than reaching max_tokens or a stop string, has that form. It ends with an end-of-sequence token.
        detokenize: False: token ids only, `text` stays empty.
        skip_special_tokens: special tokens do not show in the text.
        include_stop_str_in_output: the text ends with the stop string that ended it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    # validated, as the scheduler takes them
    numbers: _core.RequestParams = field(init=False, repr=False, compare=False)
    stop_strings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    bad_word_strings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    structure: StructuredOutputsParams | None = field(init=False, repr=False, compare=False)

    def __new__(cls, *args: object, **given: object) -> SamplingParams:
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        for name, value in given.items():
            if name not in known:
                message = f"unknown field {name!r} of SamplingParams{did_you_mean(name, known)}"
                raise InvalidRequestError(name, value, message=message)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(name, getattr(self, name), "True or False")
        object.__setattr__(self, "stop_strings", _check_stop(self.stop))
        if self.stop_strings and not self.detokenize:
            raise InvalidRequestError(
                "stop", self.stop, message="stop strings are found in the text, which detokenize=False leaves out"
            )
        words = _checked_strings("bad_words", self.bad_words, "a list of strings", MAX_BAD_WORDS, MAX_BAD_WORD_LEN)
        object.__setattr__(self, "bad_word_strings", words)
        object.__setattr__(self, "structure", StructuredOutputsParams.of(self.structured_outputs))
        if self.structure is not None and self.ignore_eos is True:
            message = "ignore_eos=True: an output under structured_outputs ends with an end-of-sequence token"
            raise InvalidRequestError("ignore_eos", self.ignore_eos, message=message, hint="leave ignore_eos out")
        object.__setattr__(self, "numbers", self._build(self.seed))

    def for_completion(self, index: int, banned_token_ids: Sequence[int] = ()) -> _core.RequestParams:
        """The numbers of completion `index` of n, of which only the seed differs, without those tokens."""
        if not banned_token_ids and (index == 0 or self.seed is None):
            return self.numbers
        seed = None if self.seed is None else (self.seed + index + (1 << 63)) % (1 << 64) - (1 << 63)
        return self._build(seed, banned_token_ids=list(banned_token_ids))

    def for_scoring(self) -> _core.RequestParams:
        """The numbers of what computes `prompt_logprobs`, which samples nothing."""
        return _core.RequestParams(temperature=0.0, max_tokens=1, logprobs=self.prompt_logprobs)

    def _build(self, seed: int | None, **more: Any) -> _core.RequestParams:
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        if isinstance(self.logit_bias, Mapping):
            numbers["logit_bias"] = dict(self.logit_bias)
        return _core.RequestParams(**{**numbers, "seed": seed, **more})


# everything that the text does not decide
_NUMBERS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
)


def _check_stop(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    return _checked_strings("stop", stops, "a string or a list of strings", MAX_STOP_STRINGS, MAX_STOP_STRING_LEN)


def _checked_strings(name: str, given: object, kind: str, max_count: int, max_len: int) -> tuple[str, ...]:
    """Each once; none of None. `kind`: what is wanted, in words; `max_len`: characters of each."""
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise InvalidRequestError(name, given, kind)
    if len(given) > max_count:
        raise InvalidRequestError(name, f"{len(given)} strings", f"at most {max_count} strings", max_count)
    for one in given:
        if not 1 <= len(one) <= max_len:
            raise InvalidRequestError(name, one, f"between 1 and {max_len} characters long")
    return tuple(dict.fromkeys(given))


# of a request that scores its prompt, of which nothing is sampled
SCORE_PARAMS = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
