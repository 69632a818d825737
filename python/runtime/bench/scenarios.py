"""The scenarios by which the field compares engines, and the requests that each of them makes.

All of them use random token ids, `ignore_eos` and no detokenising, so that only scheduling and the device count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from runtime.errors import ConfigError, did_you_mean
from runtime.sampling_params import SamplingParams

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request; its prompt is `shared_len` tokens that all of its `prefix_id` have, then `own_len` others.

    Args:
        arrival_s: when it is sent, from the start of the run; None: at once.
    """

    own_len: int
    output_len: int
    shared_len: int = 0
    prefix_id: int = 0
    arrival_s: float | None = None

    @property
    def input_len(self) -> int:
        """Tokens of the prompt."""
        return self.shared_len + self.own_len


@dataclass(frozen=True)
class Scenario:
    """`batch` requests with `input_len` tokens of context that decode `output_len` tokens together."""

    batch: int
    input_len: int = 1000
    output_len: int = 256

    @property
    def requests(self) -> tuple[Request, ...]:
        """All alike."""
        return (Request(own_len=self.input_len, output_len=self.output_len),) * self.batch

    def scaled(self, scale: int) -> Scenario:
        """With 1/scale of the batch and of the lengths; steps to time are left."""
        output_len = max(_scaled(self.output_len, scale), min(self.output_len, MIN_DECODE_LEN))
        return Scenario(_scaled(self.batch, scale), _scaled(self.input_len, scale), output_len)


@dataclass(frozen=True)
class Offline:
    """Requests of which counts when the last one ends; all are there at the start, unless they have arrival times.

    Args:
        temperature: of sampling.
        counted: the tokens of `tok_s`: "input", "output" or "total".
    """

    requests: tuple[Request, ...]
    temperature: float
    counted: str

    def num_tokens(self) -> int:
        """As `counted` says."""
        inputs = sum(one.input_len for one in self.requests)
        outputs = sum(one.output_len for one in self.requests)
        return {"input": inputs, "output": outputs, "total": inputs + outputs}[self.counted]

    @property
    def is_open(self) -> bool:
        """Whether requests come when they come, however busy the engine is: an open loop."""
        return any(one.arrival_s is not None for one in self.requests)

    def scaled(self, scale: int) -> Offline:
        """1/scale of the requests, evenly chosen, with 1/scale of their lengths."""
        return replace(self, requests=tuple(_scaled_request(one, scale) for one in self.requests[::scale]))

    def at_rate(self, rate: float, seed: int = 0) -> Offline:
        """The same requests as a Poisson stream of `rate` requests a second, the first one at 0."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, len(self.requests))
        arrivals = (np.cumsum(gaps) - gaps[0]).tolist()
        return replace(self, requests=tuple(replace(r, arrival_s=t) for r, t in zip(self.requests, arrivals)))


MIN_DECODE_LEN = 4  # tokens of output: with fewer there is no step of decodes alone to time

LATENCY = {
    **{f"decode_b{batch}": Scenario(batch) for batch in (1, 8, 64, 256)},
    "decode_b8_long": Scenario(8, input_len=7000),
}


def _mixed(count: int, seed: int = 0) -> tuple[Request, ...]:
    """Lengths uniform over 100..1024."""
    lengths = np.random.default_rng(seed).integers(100, 1025, (count, 2)).tolist()
    return tuple(Request(own_len=i, output_len=o) for i, o in lengths)


OFFLINE: dict[str, Callable[[], Offline]] = {
    "prefill_16x4096": lambda: Offline((Request(4096, 1),) * 16, 0.0, "input"),
    "prefill_32x2048": lambda: Offline((Request(2048, 1),) * 32, 0.0, "input"),
    "mixed_256": lambda: Offline(_mixed(256), 0.6, "output"),
    "fixed_1024": lambda: Offline((Request(1024, 128),) * 1024, 0.0, "total"),
    "prefix_512": lambda: Offline((Request(64, 64, shared_len=2048),) * 512, 0.0, "total"),
}

STARTUP = "startup"  # from opening an engine to its being ready

# what one model is compared by
SUITES: dict[str, tuple[str, ...]] = {
    "field": (STARTUP, *LATENCY, "prefill_16x4096", "mixed_256", "fixed_1024", "prefix_512"),
    "decode": tuple(LATENCY),
    "offline": tuple(OFFLINE),
}


def latency_scenario(name: str) -> Scenario:
    """By its name; ConfigError with the known ones."""
    return _chosen("scenario", name, LATENCY)


def offline_scenario(name: str) -> Offline:
    """By its name; ConfigError with the known ones."""
    return _chosen("scenario", name, OFFLINE)()


def suite_named(name: str) -> tuple[str, ...]:
    """The names of its scenarios."""
    return _chosen("suite", name, SUITES)


def requests_of(name: str) -> tuple[Request, ...]:
    """The requests of any scenario, in the order in which they are submitted."""
    known: dict[str, Callable[[], Scenario | Offline]] = {
        **{name: functools.partial(latency_scenario, name) for name in LATENCY},
        **OFFLINE,
    }
    return _chosen("scenario", name, known)().requests


def traced(path: str | Path) -> Offline:
    """The requests of a trace, at its times; see `runtime.simulation.read_trace`.

    Raises:
        ConfigError: a line that is no request.
    """
    from runtime.simulation import read_trace

    requests = []
    for row in read_trace(path):
        shared = int(row["prefix_len"]) if row["prefix_id"] >= 0 else 0
        own, arrival_s = int(row["prompt_len"]) - shared, float(row["arrival_ns"]) / 1e9
        requests.append(Request(own, int(row["output_len"]), shared, max(int(row["prefix_id"]), 0), arrival_s))
    return Offline(tuple(requests), 0.0, "total")


def fit(requests: Sequence[Request]) -> dict[str, int]:
    """Arguments of an LLM that serves them: all at once, up to 256."""
    longest = max(one.input_len + one.output_len for one in requests)
    return {"max_num_seqs": min(256, len(requests)), "max_model_len": longest}


def _scaled(number: int, scale: int) -> int:
    return -(-number // scale)


def _scaled_request(one: Request, scale: int) -> Request:
    shared = _scaled(one.shared_len, scale) if one.shared_len else 0
    own, output = _scaled(one.own_len, scale), _scaled(one.output_len, scale)
    return replace(one, own_len=own, output_len=output, shared_len=shared)


def _chosen(kind: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)}", hint=", ".join(known))
    return known[name]


def prompts_of(requests: Sequence[Request], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; the shared part is the same in all requests of a prefix, nothing else is."""
    rng = np.random.default_rng(seed)
    shared = {i: rng.integers(0, vocab_size, n).tolist() for i, n in _longest_prefixes(requests).items()}
    return [
        shared.get(one.prefix_id, [])[: one.shared_len] + rng.integers(0, vocab_size, one.own_len).tolist()
        for one in requests
    ]


def _longest_prefixes(requests: Sequence[Request]) -> dict[int, int]:
    """Tokens that the requests of each prefix share, by its id."""
    found: dict[int, int] = {}
    for one in requests:
        if one.shared_len:
            found[one.prefix_id] = max(found.get(one.prefix_id, 0), one.shared_len)
    return found


def sampled(output_len: int, temperature: float) -> SamplingParams:
    """Parameters of a request of exactly `output_len` tokens, without text."""
    return SamplingParams(temperature=temperature, max_tokens=output_len, ignore_eos=True, detokenize=False)
