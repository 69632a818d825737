"""Workloads by name, with the published parameters of their length distributions, and by description."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from runtime import _core
from runtime.errors import ConfigError

# kind and parameters, as `_core.Lengths` takes them: fixed(length), uniform(least, largest), lognormal(mu, sigma),
# exponential(mean)
LengthSpec = tuple[str, float] | tuple[str, float, float]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests made up from distributions; a function of `seed`.

    Args:
        prompt, output: lengths in tokens; an output includes its eos token.
        num_requests: in all.
        rate: requests a second, in the mean; math.inf: all at once; None: the loop is closed.
        cv: coefficient of variation of the gaps between arrivals, which are gamma distributed; 1: Poisson.
        concurrency: closed loop: so many requests are alive at any time.
        queue_depth: closed loop: so many requests wait at any time.
        max_tokens: what each request asks for; 0: up to the model's length.
        num_trees, branching, depth, segment_len: a forest of prefixes; each prompt starts with the path to a random
            leaf, `depth` segments of `segment_len` tokens, and has its own tokens behind.
        prompt_share: instead of segments, the prefix is this share of the prompt.
        prefix_request_share: of requests that have a prefix.
    """

    prompt: LengthSpec
    output: LengthSpec
    num_requests: int = 1000
    rate: float | None = None
    cv: float = 1.0
    concurrency: int = 0
    queue_depth: int = 0
    max_tokens: int = 0
    num_trees: int = 0
    branching: int = 1
    depth: int = 1
    segment_len: int = 0
    prompt_share: float = 0.0
    prefix_request_share: float = 1.0
    seed: int = 0
    name: str = field(default="", compare=False)

    def core(self) -> _core.Workload:
        """The compiled form.

        Raises:
            ConfigError: numbers that make no workload.
        """
        if self.rate is None and not (self.concurrency or self.queue_depth):
            raise ConfigError(
                f"workload {self.name or 'of these lengths'} has no rate of its own",
                hint="give --rate R, or --concurrency or --queue-depth for a closed loop",
            )
        return _core.Workload(
            _core.Lengths(*self.prompt),
            _core.Lengths(*self.output),
            num_requests=self.num_requests,
            seed=self.seed,
            rate=math.inf if self.rate is None else self.rate,
            cv=self.cv,
            concurrency=self.concurrency,
            queue_depth=self.queue_depth,
            max_tokens=self.max_tokens,
            prefixes=_core.SharedPrefixes(
                self.num_trees,
                branching=self.branching,
                depth=self.depth,
                segment_len=self.segment_len,
                prompt_share=self.prompt_share,
                request_share=self.prefix_request_share,
            ),
        )


def workload_named(text: str) -> Workload:
    """A workload of `WORKLOADS`, or one described as fixed:IN,OUT or uniform:LEAST,LARGEST.

    Raises:
        ConfigError: neither.
    """
    return Workload(**_core.find_workload(text))


WORKLOADS = {name: workload_named(name) for name in _core.workload_names()}


def with_changes(workload: Workload, **changes: object) -> Workload:
    """The workload with those of `changes` that are not None."""
    return dataclasses.replace(workload, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
