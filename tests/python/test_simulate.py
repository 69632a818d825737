"""Simulated serving: traces, reports, the search for capacity, and the verb."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.cli.main import main
from runtime.errors import ConfigError
from runtime.simulation import (
    WORKLOADS,
    Settings,
    Slo,
    StepTimes,
    Workload,
    find_capacity,
    read_trace,
    roofline,
    simulate,
)

LLAMA_8B = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs" / "llama-3.1-8b"
MILLISECOND = StepTimes(buckets=((1, 0.001, 0.0, 0.0),), source="one millisecond")


def settings(**changes):
    return Settings(
        **{"step_times": MILLISECOND, "num_blocks": 4096, "max_num_seqs": 16, "num_steps_in_flight": 1, **changes}
    )


def refusal(call, *args, **options):
    with pytest.raises(ConfigError) as refused:
        call(*args, **options)
    return str(refused.value)


class TestTraces:
    def test_csv_and_json_lines_say_the_same(self, tmp_path):
        header = "arrival_s,prompt_len,output_len,prefix_id,prefix_len,tenant,priority"
        (tmp_path / "t.csv").write_text(f"{header}\n0.5,100,7,3,64,a,2\n1,20,1,,,b,\n")
        rows = [
            {"arrival_s": 0.5, "prompt_len": 100, "output_len": 7, "prefix_id": 3, "prefix_len": 64, "tenant": "a"},
            {"arrival_s": 1, "prompt_len": 20, "output_len": 1, "tenant": "b"},
        ]
        rows[0]["priority"] = 2
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        trace = read_trace(tmp_path / "t.csv")
        assert (trace == read_trace(tmp_path / "t.jsonl")).all()
        assert trace["arrival_ns"].tolist() == [500_000_000, 1_000_000_000]
        assert trace["prefix_id"].tolist() == [3, -1]
        assert trace["tenant"].tolist() == [0, 1]

    @pytest.mark.parametrize(
        "lines, sentence",
        [
            ("0,10,\n", "line 2: output_len='': must be an integer between 1 and 16777216"),
            ("0,10\n", "line 2: 2 values: must be 3, as in the header"),
            ("0,10,5\n1,-4,5\n", "line 3: prompt_len='-4': must be an integer between 1 and 16777216"),
            ("2,10,5\n1.5,10,5\n", "line 3: arrival_s=1.5: must be at least 2, that of the request before"),
            ("nan,10,5\n", "line 2: arrival_s='nan': must be between 0 and 1000000000 seconds"),
            ("0,10,5\n0,4000,200\n", "line 3: prompt_len + output_len=4200: must be at most 4096 tokens"),
            ("", "has 0 requests: must have at least 1"),
        ],
    )
    def test_wrong_lines_are_refused(self, tmp_path, lines, sentence):
        path = tmp_path / "trace.csv"
        path.write_text(f"arrival_s,prompt_len,output_len\n{lines}")
        assert sentence in refusal(read_trace, path, max_len=4096)

    def test_unknown_and_missing_fields_are_refused(self, tmp_path):
        path = tmp_path / "trace.csv"
        path.write_text("arrival_s,prompt_length,output_len\n")
        assert "line 1: unknown field 'prompt_length'; did you mean 'prompt_len'" in refusal(read_trace, path)
        path.write_text("arrival_s,prompt_len\n")
        assert "line 1: no output_len: every request must have" in refusal(read_trace, path)
        path.write_text("arrival_s,prompt_len,output_len,prompt_len\n")
        assert "line 1: prompt_len stands there 2 times: must stand once" in refusal(read_trace, path)
        path = tmp_path / "trace.jsonl"
        path.write_text('{"arrival_s": 0, "prompt_len": 1, "output_len": 1}\n[1]\n')
        assert "line 2: [1]: must be an object" in refusal(read_trace, path)
        path.write_text('{"arrival_s": 0,\n')
        assert "line 1: not JSON: Expecting property name enclosed in double quotes at character" in refusal(
            read_trace, path
        )
        assert "cannot read" in refusal(read_trace, tmp_path / "absent.csv")


class TestSimulate:
    def test_a_request_takes_its_steps(self):
        report = simulate(
            Workload(prompt=("fixed", 10), output=("fixed", 5), num_requests=3, concurrency=1), settings()
        )
        assert report.figures["ttft_ms"]["p50"] == pytest.approx(1.0)
        assert report.figures["tpot_ms"]["p99"] == pytest.approx(1.0)
        assert report.figures["e2e_ms"]["mean"] == pytest.approx(5.0)
        assert report.result.requests["output_len"].tolist() == [5, 5, 5]
        assert report.figures["steps"] >= 15

    @pytest.mark.parametrize("name", sorted(WORKLOADS))
    def test_every_named_workload_runs(self, name):
        changes = {"rate": 100.0, "num_requests": 60, "seed": 3}
        workload = Workload(**{**vars(WORKLOADS[name]), **changes})
        figures = simulate(workload, settings(num_blocks=4096, max_model_len=32768)).figures
        assert figures["requests_done"] == 60
        assert 0 < figures["kv_held_share"] < 1

    def test_the_queue_keeps_a_pool_full(self):
        workload = Workload(prompt=("fixed", 64), output=("uniform", 64, 256), num_requests=300, queue_depth=8)
        figures = simulate(workload, settings(num_blocks=100)).figures
        assert figures["kv_held_share_queued"] > 0.5
        assert figures["recomputed_share"] == figures["recomputed_tokens"] / figures["computed_tokens"]

    def test_a_cpu_tier_saves_recomputation(self):
        workload = Workload(prompt=("fixed", 64), output=("uniform", 64, 256), num_requests=300, queue_depth=8)
        times = dataclasses.replace(MILLISECOND, kv_bytes_per_token=1000.0)
        without = settings(num_blocks=100, step_times=times)
        tier = dataclasses.replace(without, cpu_kv_tokens=8000, cpu_bandwidth=1e12)
        recomputed, swapped = simulate(workload, without).figures, simulate(workload, tier).figures
        assert recomputed["swaps"] == recomputed["loaded_blocks"] == 0
        assert swapped["swaps"] > 0 and swapped["loaded_blocks"] > 0
        assert swapped["recomputed_tokens"] < recomputed["recomputed_tokens"] / 2

    def test_a_tier_needs_the_bytes_of_a_token_and_a_link(self):
        workload = Workload(prompt=("fixed", 20), output=("fixed", 5), num_requests=1, concurrency=1)
        assert "how many bytes a token's KV has" in refusal(simulate, workload, settings(cpu_kv_tokens=100))
        times = dataclasses.replace(MILLISECOND, kv_bytes_per_token=1000.0)
        sentence = refusal(simulate, workload, settings(cpu_kv_tokens=100, cpu_bandwidth=0.0, step_times=times))
        assert "cpu_bandwidth=0: must be above 0 bytes a second" in sentence
        sentence = refusal(simulate, workload, settings(cpu_kv_tokens=-5, step_times=times))
        assert "cpu_kv_tokens=-5: must be 0 or at least a block of 16" in sentence

    def test_a_trace_is_served_by_a_fleet(self, tmp_path):
        path = tmp_path / "trace.jsonl"
        rows = [
            {"arrival_s": 0.01 * i, "prompt_len": 30, "output_len": 4, "prefix_id": i % 2, "prefix_len": 16}
            for i in range(40)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        fleet = settings(num_replicas=4, router="prefix_aware", num_threads=2)
        report = simulate(read_trace(path), fleet)
        assert report.figures["requests_done"] == 40
        assert report.figures["prefix_hit_share"] == pytest.approx(38 * 16 / (40 * 30))
        assert len(set(report.result.requests["replica"].tolist())) <= 2

    def test_priorities_and_tenants_reach_the_scheduler(self, tmp_path):
        path = tmp_path / "trace.csv"
        lines = [f"0,20,50,{'b' if i else 'a'},{i}" for i in range(10)]
        path.write_text("\n".join(["arrival_s,prompt_len,output_len,tenant,priority", *lines]))
        one_at_a_time = settings(max_num_seqs=1, scheduler_options={"policy": "priority"})
        order = np.argsort(simulate(read_trace(path), one_at_a_time).result.requests["ttft_s"])
        assert order.tolist() == list(range(9, -1, -1))

    def test_admission_is_chosen(self):
        workload = Workload(prompt=("uniform", 20, 60), output=("uniform", 20, 300), num_requests=300, queue_depth=4)
        small = {"num_blocks": 120, "max_num_seqs": 64, "max_model_len": 512}
        found = {
            mode: simulate(workload, settings(admission=mode, **small)).figures
            for mode in ("none", "max_tokens", "past_future", "oracle")
        }
        assert found["none"]["preemptions"] > found["past_future"]["preemptions"]
        assert found["max_tokens"]["preemptions"] == 0
        assert found["max_tokens"]["kv_held_share_queued"] < found["past_future"]["kv_held_share_queued"]
        cautious = simulate(workload, settings(admission="past_future", admission_reserve=0.4, **small)).figures
        assert cautious["kv_held_share_queued"] < found["past_future"]["kv_held_share_queued"]
        assert "admission='oracel': must be one of none, max_tokens" in refusal(settings(admission="oracel").replica)

    def test_a_target_bounds_the_gaps_between_tokens(self):
        times = roofline(LLAMA_8B)
        workload = Workload(prompt=("uniform", 2000, 8000), output=("uniform", 50, 200), num_requests=60, rate=3.0)
        gaps = {
            target: simulate(workload, settings(step_times=times, target_itl_ms=target)).figures["max_gap_ms"]["p99"]
            for target in (0.0, 25.0)
        }
        assert gaps[25.0] <= 25.0 < gaps[0.0]

    def test_reports_are_written(self, tmp_path):
        report = simulate(
            Workload(prompt=("fixed", 10), output=("fixed", 5), num_requests=3, concurrency=1), settings()
        )
        report.write_csv(tmp_path / "requests.csv")
        lines = (tmp_path / "requests.csv").read_text().splitlines()
        assert lines[0].startswith("arrival_s,ttft_s,e2e_s,max_gap_s,prompt_len")
        assert len(lines) == 4

    def test_pools_that_hold_nothing_are_refused(self):
        workload = Workload(prompt=("fixed", 20), output=("fixed", 5), num_requests=1, concurrency=1)
        assert "num_blocks=0: must be between 1 and" in refusal(simulate, workload, settings(num_blocks=0))
        assert "longest request has 25 tokens: must be at most 17" in refusal(
            simulate, workload, settings(num_blocks=1)
        )

    def test_a_gap_of_more_than_a_second_is_no_good(self):
        workload = Workload(prompt=("fixed", 10), output=("fixed", 5), num_requests=3, concurrency=1)
        slow = StepTimes(buckets=((1, 2.0, 0.0, 0.0),), source="two seconds")
        fast, slow = (simulate(workload, settings(step_times=times)).figures for times in (MILLISECOND, slow))
        assert fast["goodput_without_1s_gap_per_s"] == pytest.approx(fast["requests_per_s"]) and fast["steps"] > 0
        assert slow["requests_done"] == 3 and slow["goodput_without_1s_gap_per_s"] == 0.0

    def test_a_workload_without_arrivals_is_refused(self):
        workload = Workload(prompt=("fixed", 20), output=("fixed", 5), name="mine")
        assert "workload mine has no rate of its own (give --rate R" in refusal(simulate, workload, settings())


class TestCapacity:
    WORKLOAD = Workload(prompt=("fixed", 20), output=("fixed", 100), num_requests=400)

    def test_bisects_to_the_highest_rate(self):
        # 16 rows of 100 steps of 1 ms: 160 requests a second
        found = find_capacity(self.WORKLOAD, settings(), Slo(ttft_ms=200.0))
        assert 100 < found.rate < 250
        assert found.report.figures["slo_share"] >= 0.99
        failed = [rate for rate, share in found.tried if share < 0.99]
        assert min(failed) <= found.rate * 1.03

    def test_an_slo_that_cannot_be_met_is_refused(self):
        sentence = refusal(find_capacity, self.WORKLOAD, settings(), Slo(tpot_ms=0.5))
        assert "the SLO tpot_ms=0.5 cannot be met by 99% of the requests: one at a time, 0.0% meet it" in sentence
        assert "99th percentiles are tpot_ms=1 " in sentence
        assert "no SLO to meet" in refusal(find_capacity, self.WORKLOAD, settings(), Slo())
        assert refusal(Slo, ttft_ms=-1.0) == "slo ttft_ms=-1: must be above 0 milliseconds"


class TestVerb:
    ARGUMENTS = ["simulate", "--config", str(LLAMA_8B), "--workload", "uniform:50,100", "--num-requests", "40"]

    def test_prints_json_and_writes_files(self, tmp_path, capsys):
        files = ["--json", "-", "--csv", str(tmp_path / "r.csv"), "--save-calibration", str(tmp_path / "c.json")]
        files += ["--append", str(tmp_path / "rows.jsonl")]
        assert main([*self.ARGUMENTS, "--rate", "20", "--slo-ttft-ms", "500", *files]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["requests_done"] == 40
        assert figures["slo"] == {"ttft_ms": 500.0}
        assert len((tmp_path / "r.csv").read_text().splitlines()) == 41
        row = json.loads((tmp_path / "rows.jsonl").read_text())
        assert row["device"] and row["e2e_ms"] == figures["e2e_ms"]
        again = [
            "simulate",
            "--calibration",
            str(tmp_path / "c.json"),
            *self.ARGUMENTS[3:],
            "--rate",
            "20",
            "--json",
            "-",
        ]
        assert main(again) == 0
        assert json.loads(capsys.readouterr().out)["e2e_ms"] == figures["e2e_ms"]

    def test_finds_capacity(self, capsys):
        slo = ["--slo-ttft-ms", "100", "--find-capacity", "--max-num-seqs", "32"]
        assert main([*self.ARGUMENTS, *slo]) == 0
        assert "capacity_per_s" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments, sentence",
        [
            (["simulate"], "0 sources of step times: exactly one is needed"),
            ([*ARGUMENTS, "--workload", "azure"], "unknown workload 'azure'; did you mean 'azure-code'"),
            ([*ARGUMENTS, "--rate", "-2"], "rate=-2: must be above 0 requests a second"),
            ([*ARGUMENTS, "--rate", "1", "--concurrency", "2"], "--rate and --concurrency: arrivals are an open loop"),
            ([*ARGUMENTS, "--rate", "1", "--num-blocks", "0"], "num_blocks=0: must be between 1 and"),
            ([*ARGUMENTS, "--rate", "1", "--kv-tokens", "9"], "--kv-tokens 9: must be at least 16, one KV block"),
            ([*ARGUMENTS, "--rate", "1", "--kv-tokens", "64"], "longest request has 200 tokens: must be at most 65"),
            ([*ARGUMENTS, "--rate", "1", "--num-blocks", "1", "--kv-tokens", "1"], "give one of them"),
            ([*ARGUMENTS, "--rate", "1", "--eviction", "lfu"], "eviction='lfu': must be one of lru, cost"),
            ([*ARGUMENTS, "--rate", "1", "--cpu-kv-tokens", "3"], "cpu_kv_tokens=3: must be 0 or at least a block"),
            ([*ARGUMENTS, "--trace", "x.csv"], "--num-requests describes made-up requests"),
        ],
    )
    def test_refuses_in_a_sentence(self, capsys, arguments, sentence):
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err

    def test_plots_need_matplotlib(self, tmp_path, capsys):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            assert main([*self.ARGUMENTS, "--rate", "20", "--plot", str(tmp_path / "p.png")]) == 2
            assert "plots need matplotlib" in capsys.readouterr().err
            return
        assert main([*self.ARGUMENTS, "--rate", "20", "--plot", str(tmp_path / "p.png")]) == 0
        assert (tmp_path / "p.png").stat().st_size > 1000
