"""What a request gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """One candidate token at one position.

    `logprob` is natural, from the logits before temperature and penalties; `rank` counts from 1, None for a sampled
    token outside the requested top ones.
    """

    logprob: float
    rank: int | None
    decoded_token: str | None


@dataclass(frozen=True)
class RequestMetrics:
    """Times and counts of one request.

    `arrival` is Unix time; `queue_s`, `ttft_s` and `e2e_s` are seconds from arrival to the first scheduled step, the
    first token and the end, None while that has not happened. With n > 1 counts are sums over the n completions and
    times are those of the first (`queue_s`, `ttft_s`) and the last (`e2e_s`); `prompt_tokens` counts the prompt once.
    """

    arrival: float
    queue_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of a request.

    `finish_reason` is None while it runs, else "stop", "length", "abort" or "error". `stop_reason` is the stop string
    or the stop token id that ended it, None for an end-of-sequence token. `logprobs` has one entry a token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True)
class RequestOutput:
    """All completions of a request, in the order of their index. `prompt` is None when token ids were given.

    `prompt_logprobs` has one entry a token of the prompt, None for the first one, before which there is nothing; it is
    None where it was not asked for, and in a stream before the first token is there. A prompt with logprobs is computed
    whole, so `num_cached_tokens` is 0.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    metrics: RequestMetrics


@dataclass(frozen=True)
class StreamChunk:
    """What came since the last chunk of the same completion. `logprobs` has one entry a token of the chunk."""

    index: int
    delta: str
    token_ids: list[int]
    finish_reason: str | None
    _snapshot: Callable[[], RequestOutput] = field(repr=False, compare=False)
    logprobs: list[dict[int, Logprob]] | None = None
    stop_reason: int | str | None = None

    @property
    def output(self) -> RequestOutput:
        """The request as it stands when this is read."""
        return self._snapshot()
