"""Latency of decode steps: N requests of equal length, token by token."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from runtime.bench.limits import decode_step_s, on_paper
from runtime.bench.report import device_name
from runtime.engine import Knobs
from runtime.engine.model_runner import ModelRunner, Step
from runtime.errors import ConfigError, did_you_mean
from runtime.llm import LLM
from runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from runtime.basemodel import InferStateInfo
    from runtime.kernels.step_state import StepOutputs

PHASES = ("prepare_step", "model", "sample")


@dataclass(frozen=True)
class Scenario:
    """`batch` requests with `input_len` tokens of context, `output_len` steps."""

    batch: int
    input_len: int = 1000
    output_len: int = 256


SCENARIOS = {
    **{f"decode_b{batch}": Scenario(batch) for batch in (1, 8, 64, 256)},
    "decode_b8_long": Scenario(8, input_len=7000),
}


def scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise ConfigError(f"unknown scenario {name!r}{did_you_mean(name, SCENARIOS)}", hint=", ".join(SCENARIOS))
    return SCENARIOS[name]


class StepClock:
    """Wall time of each step, and of its phases, in seconds."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.batches: list[int] = []
        self.phases: dict[str, list[float]] = {name: [] for name in PHASES}

    def add(self, phase: str, since: float) -> None:
        self.phases[phase].append(time.perf_counter() - since)

    def decode_steps(self, batch: int) -> list[tuple[float, dict[str, float]]]:
        """(wall, phases) of the steps in which `batch` rows decoded, each up to the start of the next step."""
        found = []
        for i, (start, following) in enumerate(zip(self.starts, self.starts[1:])):
            if self.batches[i] == self.batches[i + 1] == batch:
                found.append((following - start, {name: self.phases[name][i] for name in PHASES}))
        return found


def timed_runner(clock: StepClock) -> type[ModelRunner]:
    """A ModelRunner that writes down when it did what."""

    class TimedRunner(ModelRunner):
        def launch(self, buffer: int) -> Step:
            clock.starts.append(time.perf_counter())
            step = super().launch(buffer)
            clock.batches.append(step.num_rows if step.is_decode else -1)
            return step

        def prepare(self, plan: torch.Tensor) -> None:
            since = time.perf_counter()
            super().prepare(plan)
            clock.add("prepare_step", since)

        def forward(self, input_ids: torch.Tensor, infer_state: InferStateInfo) -> torch.Tensor:
            since = time.perf_counter()
            logits = super().forward(input_ids, infer_state)
            clock.add("model", since)
            return logits

        def sample(self, logits: torch.Tensor, outputs: StepOutputs, *, greedy_only: bool) -> None:
            since = time.perf_counter()
            super().sample(logits, outputs, greedy_only=greedy_only)
            clock.add("sample", since)

    return TimedRunner


def prompts(scenario: Scenario, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; nothing is shared between them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, scenario.input_len).tolist() for _ in range(scenario.batch)]


def run_once(llm: LLM, scenario: Scenario) -> float:
    """Mean seconds from one output token to the next, over all requests: (E2E - TTFT) / (output tokens - 1)."""
    params = SamplingParams(temperature=0.0, max_tokens=scenario.output_len, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts(scenario, llm.vocab_size), params, use_tqdm=False)
    return statistics.mean(_tpot(out.metrics) for out in outputs)


def measure(model: str | None, scenario: Scenario, arguments: dict[str, Any], repeat: int = 3) -> dict[str, Any]:
    """Time per output token in ms, the median of `repeat` runs after one that warms up; `limit` in ms."""
    with LLM(model, **_fit(scenario, arguments)) as llm:
        times = []
        for i in range(repeat + 1):
            tpot = run_once(llm, scenario)
            llm.reset_prefix_cache()
            if i:
                times.append(tpot)
        device, dtype = llm.device, llm.dtype
    tpot = statistics.median(times)
    row = {"dtype": dtype, "tpot_ms": round(tpot * 1e3, 4), "tok_s": round(scenario.batch / tpot, 1), "on": device}
    context = scenario.input_len + scenario.output_len / 2
    limit = decode_step_s(on_paper(llm.config.model_dir), scenario.batch, context, device_name(device))
    if limit is not None:
        row |= {"limit": round(limit * 1e3, 4), "pct_of_limit": round(100 * limit / tpot, 1)}
    return row


def overhead(model: str | None, scenario: Scenario, arguments: dict[str, Any], num_steps: int = 1000) -> dict[str, Any]:
    """A step's wall time minus the time inside prepare_step, model and sampler, as medians over `num_steps` steps.

    On a CPU, where these run inside the step.
    """
    clock = StepClock()
    knobs = Knobs(runner_class=timed_runner(clock))
    with LLM._with_knobs(knobs, model, **_fit(scenario, {**arguments, "device": "cpu"})) as llm:
        run_once(llm, scenario)  # warms up
        steps: list[tuple[float, dict[str, float]]] = []
        while len(steps) < num_steps:
            run_once(llm, scenario)
            steps = clock.decode_steps(scenario.batch)[-num_steps:]
        dtype = llm.dtype
    rest = [wall - sum(phases.values()) for wall, phases in steps]
    return {
        "dtype": dtype,
        "steps": len(steps),
        "step_us": _median_us([wall for wall, _ in steps]),
        **{f"{name}_us": _median_us([phases[name] for _, phases in steps]) for name in PHASES},
        "overhead_us": _median_us(rest),
        "on": "cpu",
    }


def _tpot(metrics: Any) -> float:
    return float((metrics.e2e_s - metrics.ttft_s) / max(metrics.output_tokens - 1, 1))


def _median_us(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e6, 1)


def _fit(scenario: Scenario, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an LLM in which all requests of the scenario run together."""
    wanted: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "max_num_seqs": scenario.batch,
        "max_model_len": scenario.input_len + scenario.output_len,
    }
    return {**arguments, **wanted}
