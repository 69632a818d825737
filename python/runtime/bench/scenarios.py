"""The scenarios by which the field compares engines, and the requests that each of them makes.

All of them use random token ids, `ignore_eos` and no detokenising, so that only scheduling and the device count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from runtime.errors import ConfigError, did_you_mean
from runtime.sampling_params import SamplingParams

T = TypeVar("T")


@dataclass(frozen=True)
class Scenario:
    """`batch` requests with `input_len` tokens of context that decode `output_len` tokens together."""

    batch: int
    input_len: int = 1000
    output_len: int = 256

    @property
    def requests(self) -> tuple[Request, ...]:
        return (Request(own_len=self.input_len, output_len=self.output_len),) * self.batch


@dataclass(frozen=True)
class Request:
    """One request of an offline scenario; its prompt is `shared_len` tokens that all have, then `own_len` others."""

    own_len: int
    output_len: int
    shared_len: int = 0

    @property
    def input_len(self) -> int:
        return self.shared_len + self.own_len


@dataclass(frozen=True)
class Offline:
    """Requests that are all there at the start; what counts is when the last one ends.

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


def latency_scenario(name: str) -> Scenario:
    return _chosen(name, LATENCY)


def offline_scenario(name: str) -> Offline:
    return _chosen(name, OFFLINE)()


def requests_of(name: str) -> tuple[Request, ...]:
    """The requests of any scenario, in the order in which they are submitted."""
    known: dict[str, Callable[[], Scenario | Offline]] = {
        **{name: functools.partial(latency_scenario, name) for name in LATENCY},
        **OFFLINE,
    }
    return _chosen(name, known)().requests


def fit(requests: Sequence[Request]) -> dict[str, int]:
    """Arguments of an LLM that serves them: all at once, up to 256."""
    longest = max(one.input_len + one.output_len for one in requests)
    return {"max_num_seqs": min(256, len(requests)), "max_model_len": longest}


def _chosen(name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise ConfigError(f"unknown scenario {name!r}{did_you_mean(name, known)}", hint=", ".join(known))
    return known[name]


def decode_prompts(scenario: Scenario, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; nothing is shared between prompts."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, scenario.input_len).tolist() for _ in range(scenario.batch)]


def offline_prompts(requests: Sequence[Request], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; the shared part is the same in all of them."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, vocab_size, max(one.shared_len for one in requests)).tolist()
    return [shared[: one.shared_len] + rng.integers(0, vocab_size, one.own_len).tolist() for one in requests]


def greedy(output_len: int) -> SamplingParams:
    return sampled(output_len, temperature=0.0)


def sampled(output_len: int, temperature: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=output_len, ignore_eos=True, detokenize=False)
