"""The simulator beside an engine: step logs, the same requests, and predictions from a calibration."""

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import _core
from runtime.bench import suite
from runtime.bench.rows import append_row
from runtime.bench.scenarios import LATENCY, OFFLINE, Offline, Request, Scenario, fit, prompts_of, requests_of
from runtime.bench.simulation import predict
from runtime.bench.step_clock import StepClock
from runtime.bench.suite import Bench
from runtime.cli.main import main
from runtime.kernels import step_plan as sp
from runtime.simulation import StepLog, calibrate, fit_step_times, tile_tokens
from runtime.simulation.calibration import FEATURES

LLAMA_8B = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs" / "llama-3.1-8b"
NUM_BLOCKS, BLOCK_SIZE, NUM_TOKENS = 6400, 64, 8192


def true_seconds(plan, num_repeated=0):
    """An 8B model at 3 TB/s and 600 TFLOP/s, by each row's own context; the simulator only sees sums of tiles.

    Args:
        num_repeated: tokens of context that a row reads after another, from a cache at 10 TB/s.
    """
    rows = plan[plan[sp.ROWS] :][: plan[sp.NUM_ROWS] * sp.ROW_WORDS].reshape(-1, sp.ROW_WORDS).astype(float)
    context, new = rows[:, 1], rows[:, 2]
    is_decode = np.arange(len(rows)) < plan[sp.NUM_DECODE_ROWS]
    num_read = (context + 1)[is_decode].sum() - num_repeated
    kv_s = 131072 * (num_read / 3e12 + num_repeated / 10e12)
    pairs = (new * context + new * (new + 1) / 2)[~is_decode].sum()
    products_s = max(15.0e9 / 3e12, new.sum() * 14.0e9 / 600e12)
    return 3e-4 + products_s + kv_s + pairs * 4 * 4096 * 32 / 450e12 + 2e-6 * len(rows)


class VirtualEngine:
    """The scheduler, driven as an engine does with two steps in flight, over a device that takes `true_seconds`."""

    def __init__(self, scenario, log=None, noise=0.0, has_cache=False):
        self.requests, self.log, self.scenario = requests_of(scenario), log, scenario
        self.rng, self.noise = np.random.default_rng(5), noise
        self.tables = {} if has_cache else None  # row -> block of each index
        limits = fit(self.requests)
        self.settings = {**limits, "block_size": BLOCK_SIZE, "num_blocks": NUM_BLOCKS, "num_steps_in_flight": 2}
        self.settings["max_num_batched_tokens"] = NUM_TOKENS
        config = _core.SchedulerConfig(
            limits["max_num_seqs"], NUM_TOKENS, BLOCK_SIZE, limits["max_model_len"], 32000, num_steps_in_flight=2
        )
        self.scheduler = _core.Scheduler(config, _core.BlockAllocator(NUM_BLOCKS))
        self.plans = [np.zeros(self.scheduler.plan_capacity, dtype=np.int32) for _ in range(3)]
        self.scheduler.attach_plan_buffers([(plan.ctypes.data, plan.size) for plan in self.plans])

    def run(self):
        """(seconds, time to first token of each request)"""
        for i, prompt in enumerate(prompts_of(self.requests, 32000)):
            params = _core.RequestParams(max_tokens=self.requests[i].output_len, ignore_eos=True, temperature=0.0)
            self.scheduler.submit(i, prompt, params)
        now, step, in_flight, first = 0.0, 0, deque(), {}
        while True:
            while len(in_flight) < 2 and (buffer := self.scheduler.schedule()) >= 0:
                plan = self.plans[buffer]
                slower = 1 + self.noise * abs(self.rng.standard_normal())
                seconds = true_seconds(plan, self.num_repeated(plan)) * slower
                if self.log is not None:
                    self.log.add(plan, seconds, scenario=self.scenario)
                step += 1
                in_flight.append((step, seconds, int(plan[sp.NUM_ROWS])))
            if not in_flight:
                return now, np.array([first[i] for i in range(len(self.requests))])
            number, seconds, num_rows = in_flight.popleft()
            now += seconds
            for request_id in self.scheduler.update(number, np.full(num_rows, 7, dtype=np.int32)).request_ids.tolist():
                first.setdefault(request_id, now)

    def num_repeated(self, plan):
        """Tokens of KV that the decode rows read after another row, counted block by block."""
        if self.tables is None:
            return 0
        at, count = plan[sp.NEW_BLOCKS : sp.NEW_BLOCKS + 2]
        for row, index, block in plan[at:][: 3 * count].reshape(-1, 3).tolist():
            table = self.tables.setdefault(row, [])
            del table[index:]
            table.append(block)
        rows = plan[plan[sp.ROWS] :][: plan[sp.NUM_DECODE_ROWS] * sp.ROW_WORDS : sp.ROW_WORDS].tolist()
        read = [block for row in rows for block in self.tables[row]]
        return (len(read) - len(set(read))) * BLOCK_SIZE


def nearest_rank(values, percent):
    return sorted(values)[-(-percent * len(values) // 100) - 1]


def refusal(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    """A folder with the step log of two scenarios and measured rows of two others."""
    folder = tmp_path_factory.mktemp("virtual")
    log = StepLog(folder / "steps.jsonl")
    for scenario in ("decode_b64", "fixed_1024"):
        VirtualEngine(scenario, log, noise=0.03).run()
    log.close()
    for scenario in ("mixed_256", "prefix_512"):
        engine = VirtualEngine(scenario, noise=0.03)
        seconds, ttft_s = engine.run()
        row = {"engine": "runtime", "model": LLAMA_8B.name, "scenario": scenario, "s": seconds, "submit_s": 0.0}
        row |= {"ttft_p99_ms": 1e3 * nearest_rank(ttft_s, 99), "settings": engine.settings, "device": "virtual"}
        append_row(row, folder / "rows.jsonl")
        append_row(row | {"s": 9 * seconds, "deterministic": True}, folder / "rows.jsonl")
    return folder


class TestPrediction:
    def test_two_scenarios_are_predicted_from_two_others(self, virtual, tmp_path):
        arguments = ["--step-log", virtual / "steps.jsonl", "--rows", virtual / "rows.jsonl", "--model", LLAMA_8B]
        found = tmp_path / "found.jsonl"
        assert main(["bench", "simulation", *map(str, arguments), "--append", str(found)]) == 0
        rows = [json.loads(line) for line in found.read_text().splitlines()]
        assert [row["scenario"] for row in rows] == ["mixed_256", "prefix_512"]
        for row in rows:
            assert row["engine"] == "simulated" and row["measured_on"] == "virtual"
            assert abs(row["error_pct"]) < 3 and abs(row["ttft_error_pct"]) < 3
            assert row["s"] == pytest.approx(row["measured_s"] * (1 + row["error_pct"] / 100), rel=1e-3)
        assert rows[0]["step_times"].startswith("decode_b64, fixed_1024: 811 steps")

    def test_what_rows_read_together_is_counted(self, virtual):
        """On a device whose cache gives a prefix that all rows have to the second of them at 10 TB/s."""
        engine = VirtualEngine("prefix_512", has_cache=True)
        seconds, ttft_s = engine.run()

        def error(share):
            times = calibrate(virtual / "steps.jsonl", tile_tokens=tile_tokens(LLAMA_8B), repeated_tile_share=share)
            figures = predict("prefix_512", times, engine.settings).figures
            return figures["duration_s"] / seconds - 1, figures["ttft_ms"]["p99"] / (1e3 * nearest_rank(ttft_s, 99)) - 1

        assert error(1.0)[0] > 0.1
        assert np.abs(error(0.3)).max() < 0.03

    def test_who_came_before_the_first_step_computes_a_shared_prefix_side_by_side(self, virtual):
        times = calibrate(virtual / "steps.jsonl", tile_tokens=tile_tokens(LLAMA_8B))
        settings = VirtualEngine("prefix_512").settings
        alone, together = (predict("prefix_512", times, settings, 0.14, wait).figures for wait in (0.0, 0.005))
        assert alone["computed_tokens"] + 3 * 2048 <= together["computed_tokens"]
        assert alone["duration_s"] < together["duration_s"]

    def test_what_was_not_measured_is_refused(self, virtual, tmp_path, capsys):
        log, rows = virtual / "steps.jsonl", virtual / "rows.jsonl"
        verb = ["bench", "simulation", "--step-log", log, "--rows", rows]
        assert "no measured row of mixed_256 with builtin (--model DIR says" in refusal(capsys, *verb)
        verb += ["--model", LLAMA_8B]
        assert "has no measured row of fixed_1024" in refusal(capsys, *verb, "--scenarios", "fixed_1024")
        assert "unknown scenario 'mixed_25'; did you mean" in refusal(capsys, *verb, "--scenarios", "mixed_25")
        sentence = refusal(capsys, *verb, "--calibrate-on", "decode_b1")
        assert "has no steps of 'decode_b1': it has decode_b64, fixed_1024" in sentence
        older = tmp_path / "older.jsonl"
        older.write_text(json.dumps({"engine": "runtime", "model": LLAMA_8B.name, "scenario": "mixed_256", "s": 1.0}))
        assert "the row of mixed_256 has no ttft_p99_ms (measure it again" in refusal(capsys, *verb, "--rows", older)


class TestScenarios:
    def simulated(self, capsys, *arguments):
        assert main(["simulate", *map(str, arguments), "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)

    @pytest.mark.parametrize(
        "scenario, seqs, longest", [("mixed_256", 256, 2048), ("prefill_16x4096", 16, 4097), ("decode_b8", 8, 1256)]
    )
    def test_defaults_are_those_of_the_engine(self, capsys, scenario, seqs, longest):
        figures = self.simulated(capsys, "--config", LLAMA_8B, "--scenario", scenario)
        asked = requests_of(scenario)
        assert figures["scenario"] == scenario and figures["requests_done"] == len(asked)
        assert figures["max_num_seqs"] == seqs and figures["max_model_len"] <= longest
        assert figures["computed_tokens"] == sum(one.input_len + one.output_len - 1 for one in asked)

    def test_shared_prompts_are_shared(self, capsys):
        figures = self.simulated(capsys, "--config", LLAMA_8B, "--scenario", "prefix_512")
        assert figures["prefix_hit_share"] > 0.94  # but for those that start before the first one is computed
        apart = self.simulated(capsys, "--config", LLAMA_8B, "--scenario", "prefix_512", "--no-enable-prefix-caching")
        assert apart["prefix_hit_share"] == 0 and apart["duration_s"] > 3 * figures["duration_s"]

    def test_a_recorded_run_stands_in_for_the_roofline(self, virtual, capsys):
        arguments = ["--calibrate", virtual / "steps.jsonl", "--config", LLAMA_8B, "--calibrate-on", "fixed_1024"]
        figures = self.simulated(capsys, *arguments, "--scenario", "decode_b1", "--kv-tokens", 409600)
        assert figures["step_times"].startswith("fixed_1024: 548 steps") and figures["steps"] == 256

    def test_what_contradicts_a_scenario_is_refused(self, capsys):
        verb = ["simulate", "--config", LLAMA_8B, "--scenario"]
        assert "unknown scenario 'mixed'; did you mean 'mixed_256'" in refusal(capsys, *verb, "mixed")
        assert "--rate describes made-up requests: a scenario has" in refusal(capsys, *verb, "mixed_256", "--rate", 1)
        assert "--trace and --scenario both say" in refusal(capsys, *verb, "mixed_256", "--trace", "x.csv")
        assert "which a scenario does not have" in refusal(capsys, *verb, "mixed_256", "--find-capacity")


class TestStepLog:
    def test_a_step_lasts_until_the_next_one_can_begin(self):
        clock = StepClock()
        # two in flight, so launched before the one before has ended; the last but one finds an idle device
        clock.starts = [1.0, 1.1, 3.0, 4.5, 9.0, 9.5]
        clock.steps = [SimpleNamespace(done_at=end) for end in (3.0, 4.5, 8.0, 8.5, 10.0, None)]
        clock.features = [_core.StepFeatures(i + (i != 1), 0, 0, 0, 0) for i in range(5)]
        clock.features[2] = _core.StepFeatures(0, 0, 0, 0, 0)  # copies alone
        clock.features.append(_core.StepFeatures(9, 0, 0, 0, 0))
        assert [seconds for _, seconds in clock.timed_steps()] == pytest.approx([2.0, 1.5, 1.0, 1.0])

    def test_the_suite_writes_the_steps_of_its_measured_runs(self, tmp_path, monkeypatch):
        monkeypatch.setitem(LATENCY, "decode_b8", Scenario(batch=3, input_len=20, output_len=6))
        asked = tuple(Request(own_len=10 + i, output_len=3 + i) for i in range(8))
        monkeypatch.setitem(OFFLINE, "mixed_256", lambda: Offline(asked, 0.6, "output"))
        limits = {"device": "cpu", "num_kv_blocks": 64, "max_num_batched_tokens": 32, "max_num_seqs": 4}
        bench = Bench(arguments=limits, repeat=2)
        rows = list(suite.run(bench, ["decode_b8", "mixed_256"], step_log=tmp_path / "steps.jsonl"))
        steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
        assert {step["scenario"] for step in steps} == {"decode_b8", "mixed_256"}
        mine = [step for step in steps if step["scenario"] == "mixed_256"]
        # all tokens of two runs but those of the last step of each, where the longest request was alone
        assert sum(step["num_tokens"] for step in mine) == 2 * (
            sum(one.input_len + one.output_len - 1 for one in asked) - 1
        )
        assert all(step["num_rows"] <= 4 and step["num_decode_rows"] <= step["num_rows"] for step in mine)
        row = rows[1]
        assert row["settings"] == {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 32,
            "block_size": 16,
            "num_blocks": 64,
            "max_model_len": 27,
            "num_steps_in_flight": 1,
        }
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"] and 0 <= row["submit_s"] <= row["s"]
        assert 0 <= row["first_step_s"] <= row["ttft_p50_ms"] / 1e3

    def test_a_log_that_cannot_be_written_is_refused(self, tmp_path, capsys):
        verb = ["bench", "suite", "--scenarios", "decode_b1", "--device", "cpu", "--step-log"]
        assert "cannot write" in refusal(capsys, *verb, tmp_path / "absent" / "steps.jsonl")


class TestFit:
    def steps(self, noise):
        rng = np.random.default_rng(4)
        for _ in range(400):
            tokens = int(rng.integers(1000, 8192))
            # prompts of 1024 alone: attention grows as the tokens do
            tiles = tokens / 1024 * 32
            seconds = (0.005 + tokens * 24e-6) * float(np.exp(noise * rng.standard_normal()))
            yield dict(zip(FEATURES, [tokens // 1024, 0, tokens, 0, tiles, 0])) | {"seconds": seconds}

    def test_the_sum_of_scattered_times_is_kept(self):
        steps = list(self.steps(noise=0.3))
        model = fit_step_times(steps).model()
        fitted = [model.seconds(_core.StepFeatures(**{k: v for k, v in s.items() if k != "seconds"})) for s in steps]
        assert sum(fitted) == pytest.approx(sum(step["seconds"] for step in steps), rel=0.01)

    def test_attention_that_cannot_be_told_from_products_runs_at_their_rate(self):
        fitted = fit_step_times(self.steps(noise=0.01), tile_tokens=0.6)
        per_token = (fitted.buckets[-1][2] - fitted.buckets[-2][2]) / (fitted.buckets[-1][0] - fitted.buckets[-2][0])
        assert fitted.prefill_tile_s / per_token == pytest.approx(0.6, rel=0.15)
        assert per_token + fitted.prefill_tile_s * 32 / 1024 == pytest.approx(24e-6, rel=0.02)
