"""Benchmarks: the limits they compare with, and what they count."""

from pathlib import Path

import pytest

from runtime.bench.latency import SCENARIOS, StepClock, prompts
from runtime.bench.limits import decode_step_s, on_paper

CONFIGS = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs"


@pytest.mark.parametrize(
    "model, scenario, expected_ms",
    [
        ("llama-3.1-8b", "decode_b1", 3.53),
        ("llama-3.1-8b", "decode_b8", 3.77),
        ("llama-3.1-8b", "decode_b64", 5.69),
        ("llama-3.1-8b", "decode_b256", 13.7),
        ("llama-3.1-8b", "decode_b8_long", 5.23),
        ("qwen3-0.6b", "decode_b1", 0.31),
        ("bloom-7b1", "decode_b1", 3.42),
    ],
)
def test_limits_are_bytes_and_flops(model, scenario, expected_ms):
    shape = SCENARIOS[scenario]
    context = shape.input_len + shape.output_len / 2
    limit = decode_step_s(on_paper(CONFIGS / model), shape.batch, context, "NVIDIA H200")
    assert limit * 1e3 == pytest.approx(expected_ms, rel=0.015)
    assert decode_step_s(on_paper(CONFIGS / model), shape.batch, context, "a CPU") is None


def test_the_clock_takes_steps_of_the_batch_alone():
    clock = StepClock()
    for start, batch in [(0.0, -1), (1.0, 2), (3.0, 2), (7.0, 1)]:
        clock.starts.append(start)
        clock.batches.append(batch)
        for name in clock.phases:
            clock.phases[name].append(0.5)
    assert clock.decode_steps(2) == [(2.0, {"prepare_step": 0.5, "model": 0.5, "sample": 0.5})]


def test_prompts_are_seeded_and_share_nothing():
    made = prompts(SCENARIOS["decode_b8"], 32000)
    assert made == prompts(SCENARIOS["decode_b8"], 32000) and len(made) == 8 and {len(p) for p in made} == {1000}
    assert len({tuple(prompt[:16]) for prompt in made}) == 8
