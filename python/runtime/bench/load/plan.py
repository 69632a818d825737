"""What is sent, and when: fixed before the first request goes out."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bench.scenarios import OFFLINE, Request, fit, offline_scenario, requests_of
from runtime.errors import ConfigError

_WARM_UP_INDEX = 1 << 40  # prompts of their own, so that no prefix is cached when it counts
_PREFIX_STREAM = 1 << 41
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class LoadRequest:
    """One request.

    Args:
        index: which of the run's; its prompt is a function of seed and index.
        at_s: when it is to be sent, from the start; None: as soon as a client is free.
        prompt_len, output_len: tokens.
        prefix_id, prefix_len: requests with the same prefix_id share that many tokens; -1: none.
        tenant, priority: sent as headers unless 0.
    """

    index: int
    at_s: float | None
    prompt_len: int
    output_len: int
    prefix_id: int = -1
    prefix_len: int = 0
    tenant: int = 0
    priority: int = 0

    def prompt(self, seed: int, vocab_size: int) -> list[int]:
        """Random token ids, int [prompt_len]."""
        own = _tokens(seed, self.index, self.prompt_len - self.prefix_len, vocab_size)
        if not self.prefix_len:
            return own
        return _tokens(seed, _PREFIX_STREAM + self.prefix_id, self.prefix_len, vocab_size) + own

    def text(self, seed: int) -> str:
        """Single letters, which most tokenizers make a token of each: about prompt_len tokens in all."""
        letters = np.array(self.prompt(seed, len(_LETTERS)))
        return " ".join(_LETTERS[letters].tolist())


@dataclass(frozen=True)
class Plan:
    """Requests in the order in which they are sent.

    Args:
        scenario: its name in a row.
        concurrency: most requests that are open at once; None: any number.
        temperature: of sampling.
    """

    requests: Sequence[LoadRequest]
    scenario: str
    concurrency: int | None = None
    temperature: float = 0.0
    arrivals: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Sent at times of its own, whatever the server does."""
        return self.requests[0].at_s is not None

    def mean_lengths(self) -> dict[str, float]:
        """Tokens of a prompt and of an output, as they are asked for."""
        return {
            "in": round(statistics.fmean(one.prompt_len for one in self.requests), 1),
            "out": round(statistics.fmean(one.output_len for one in self.requests), 1),
        }

    def engine_arguments(self) -> dict[str, int]:
        """Arguments of an LLM that serves them: all at once, up to 256."""
        return fit([Request(one.prompt_len, one.output_len) for one in self.requests])

    def warm_up(self, count: int) -> list[LoadRequest]:
        """Requests of the same lengths with other prompts, all at once."""
        chosen = itertools.islice(itertools.cycle(self.requests), count)
        return [LoadRequest(_WARM_UP_INDEX + i, 0.0, one.prompt_len, one.output_len) for i, one in enumerate(chosen)]


@dataclass(frozen=True)
class Arrivals:
    """When requests come.

    Args:
        rate: requests a second in the mean; math.inf: all at once; None: the loop is closed.
        cv: coefficient of variation of the gaps, which are gamma distributed; 1: Poisson, 0: constant.
        num_requests: in all; None: as many as `duration_s` holds.
        duration_s: none is sent later.
    """

    rate: float | None = None
    cv: float = 1.0
    num_requests: int | None = None
    duration_s: float | None = None
    seed: int = 0

    def times(self) -> Iterator[float | None]:
        """Seconds from the start, in order, as many as there are requests; endless in a closed loop without a number.

        The first gap is a gap too, so that the mean rate is right from the start.
        """
        times = itertools.repeat(None) if self.rate is None else self._open_times(self.rate)
        bounded = itertools.takewhile(self._is_in_time, times)
        return itertools.islice(bounded, self.num_requests)

    def _is_in_time(self, at_s: float | None) -> bool:
        return at_s is None or self.duration_s is None or at_s <= self.duration_s

    def _open_times(self, rate: float) -> Iterator[float]:
        if math.isinf(rate):
            yield from itertools.repeat(0.0)
        rng, now = np.random.default_rng((self.seed, 1)), 0.0
        while True:
            shape = 1 / self.cv**2 if self.cv else 0.0
            now += rng.gamma(shape, 1 / (shape * rate)) if shape else 1 / rate
            yield now

    def describe(self) -> dict[str, Any]:
        """Its keys in a row."""
        if self.rate is None:
            return {}
        if math.isinf(self.rate):
            return {"rate": "inf"}
        return {"rate": self.rate, "cv": self.cv}


def plan_of_lengths(
    arrivals: Arrivals, concurrency: int | None, prompt_len: int, output_len: int, temperature: float
) -> Plan:
    """Requests of equal lengths.

    Raises:
        ConfigError: none is sent within the duration.
    """
    # a closed loop that only time ends takes what it needs of these
    times = arrivals.times() if arrivals.rate is not None or arrivals.num_requests else _many()
    requests = [LoadRequest(i, at_s, prompt_len, output_len) for i, at_s in enumerate(times)]
    if not requests:
        raise ConfigError(
            f"--duration={arrivals.duration_s:g}: no request comes so early at --rate={arrivals.rate:g}",
            hint=f"nearest: {2 / (arrivals.rate or 1):g}",
        )
    name = f"serve_c{concurrency}" if arrivals.rate is None else f"serve_r{arrivals.rate:g}"
    return Plan(requests, name, concurrency, temperature, arrivals.describe())


def plan_of_scenario(name: str, arrivals: Arrivals, concurrency: int | None, temperature: float | None) -> Plan:
    """The requests of a scenario of `runtime bench suite`, in its order.

    Args:
        temperature: None: the scenario's.
    """
    found = requests_of(name)
    if temperature is None:
        temperature = offline_scenario(name).temperature if name in OFFLINE else 0.0
    requests = [
        LoadRequest(i, at_s, one.input_len, one.output_len, 0 if one.shared_len else -1, one.shared_len)
        for i, (one, at_s) in enumerate(zip(found, arrivals.times()))
    ]
    return Plan(requests, f"serve_{name}", concurrency, temperature, arrivals.describe())


def plan_of_trace(path: str, num_requests: int | None, concurrency: int | None, temperature: float) -> Plan:
    """A trace as `runtime simulate --trace` reads it, or its first requests.

    Raises:
        ConfigError: with the line's number, its value and the limit.
    """
    from runtime.simulation import read_trace

    trace = read_trace(path)[:num_requests]
    requests = [_of_trace(i, dict(zip(trace.dtype.names or (), row))) for i, row in enumerate(trace.tolist())]
    return Plan(requests, f"serve_{Path(path).name}", concurrency, temperature)


_CLOSED_LOOP_REQUESTS = 100_000


def _many() -> Iterator[None]:
    return itertools.repeat(None, _CLOSED_LOOP_REQUESTS)


def _of_trace(index: int, row: dict[str, int]) -> LoadRequest:
    return LoadRequest(
        index,
        row["arrival_ns"] / 1e9,
        row["prompt_len"],
        row["output_len"],
        row["prefix_id"],
        row["prefix_len"] if row["prefix_id"] >= 0 else 0,
        row["tenant"],
        row["priority"],
    )


def _tokens(seed: int, stream: int, count: int, vocab_size: int) -> list[int]:
    found: list[int] = np.random.default_rng((seed, stream)).integers(0, vocab_size, count).tolist()
    return found
