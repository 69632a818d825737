"""Settings of the engine that are no arguments of `LLM`."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.engine.model_runner import ModelRunner


@dataclass(frozen=True)
class Knobs:
    """What only tests and benchmarks turn.

    Args:
        num_steps_in_flight: None: 1 on a CPU, 2 on CUDA.
        preempt_every: preempt a request every so many steps; 0: never.
    """

    num_steps_in_flight: int | None = None
    preempt_every: int = 0
    runner_class: type[ModelRunner] = ModelRunner
