"""Benchmarks: the limits they compare with, and what they count."""

import json
from pathlib import Path

import pytest
import torch

from runtime.bench import scheduler_calls, suite
from runtime.bench.limits import decode_step_s, offline_s, on_paper
from runtime.bench.scenarios import LATENCY, Scenario, offline_scenario, prompts_of
from runtime.bench.step_clock import StepClock
from runtime.bench.suite import Bench
from runtime.cli.main import main
from runtime.errors import ConfigError
from runtime.simulation import replay

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
    shape = LATENCY[scenario]
    context = shape.input_len + shape.output_len / 2
    limit = decode_step_s(on_paper(CONFIGS / model), shape.batch, context, "NVIDIA H200")
    assert limit * 1e3 == pytest.approx(expected_ms, rel=0.015)
    assert decode_step_s(on_paper(CONFIGS / model), shape.batch, context, "a CPU") is None


@pytest.mark.parametrize(
    "model, scenario, expected",
    [
        ("llama-3.1-8b", "prefill_16x4096", 52400),
        ("llama-3.1-8b", "mixed_256", 13700),
        ("qwen3-0.6b", "mixed_256", 36500),
    ],
)
def test_limits_of_closed_batches(model, scenario, expected):
    chosen = offline_scenario(scenario)
    limit = chosen.num_tokens() / offline_s(on_paper(CONFIGS / model), chosen, "NVIDIA H200")
    assert limit == pytest.approx(expected, rel=0.03)  # the lengths are drawn


def test_shared_prompts_share_what_they_should():
    made = prompts_of(offline_scenario("prefix_512").requests, 32000)
    assert len(made) == 512 and {len(prompt) for prompt in made} == {2048 + 64}
    assert len({tuple(prompt[:2048]) for prompt in made}) == 1
    assert len({tuple(prompt[2048:]) for prompt in made}) == 512


def test_the_suite_names_what_it_does_not_know():
    with pytest.raises(ConfigError, match="decode_b65.*decode_b64"):
        list(suite.run(Bench(), ["decode_b65"]))


def test_the_suite_gives_a_row_for_each_scenario(monkeypatch):
    monkeypatch.setitem(LATENCY, "decode_b8", Scenario(batch=2, input_len=8, output_len=4))
    bench = Bench(arguments={"device": "cpu", "num_kv_blocks": 64}, repeat=1)
    rows = list(suite.run(bench, ["startup", "decode_b8"]))
    assert [row["scenario"] for row in rows] == ["startup", "decode_b8"]
    assert rows[0]["s"] > 0 and rows[1]["batch"] == 2 and rows[1]["tpot_ms"] > 0


def test_the_clock_takes_steps_of_the_batch_alone():
    clock = StepClock()
    for start, batch in [(0.0, -1), (1.0, 2), (3.0, 2), (7.0, 1)]:
        clock.starts.append(start)
        clock.batches.append(batch)
        for name in clock.phases:
            clock.phases[name].append(0.5)
    assert clock.decode_steps(2) == [(2.0, {"prepare_step": 0.5, "model": 0.5, "sample": 0.5})]


def test_prompts_are_seeded_and_share_nothing():
    made = prompts_of(LATENCY["decode_b8"].requests, 32000)
    assert (
        made == prompts_of(LATENCY["decode_b8"].requests, 32000) and len(made) == 8 and {len(p) for p in made} == {1000}
    )
    assert len({tuple(prompt[:16]) for prompt in made}) == 8


def test_every_call_of_the_scheduler_is_timed():
    found = scheduler_calls.measure(40)
    assert found.pop("calls") == 40
    assert set(found) == {"idle_schedule_us", "schedule_us", "update_us", "submit_us", "abort_us"}


def test_a_benchmark_of_the_scheduler_records_its_decisions(tmp_path, capsys):
    log = tmp_path / "events"
    assert main(["bench", "scheduler", "--batch", "3", "--steps", "20", "--event-log", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scenario"] == "scheduler_b3_recorded"
    assert replay(log).figures["requests"] == 3


def test_sums_need_a_gpu_for_each_rank(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert main(["bench", "allreduce", "--ranks", "2"]) == 2
    assert "--ranks=2: two or more are needed, with a GPU each; torch sees 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, code, text",
    [
        (("--only", "linear,rowwize"), 2, "--only=rowwize: must be of token_attention, context_attention, linear"),
        (("--model", "llama"), 2, "--model=llama: must be of llama-3.1-8b"),
        pytest.param(
            (), 69, "torch sees none", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
        ),
    ],
)
def test_kernels_say_what_they_cannot_time(capsys, flags, code, text):
    assert main(["bench", "kernels", *flags]) == code
    assert text in capsys.readouterr().err
