"""Peers: the same requests go to every engine, and the same figures are made of what comes back."""

import importlib
import json
import sys

import pytest
import torch
import transformers

from runtime.bench.distributions import histogram_ms, percentiles_ms
from runtime.bench.engines import RequestTimes, TimedRequest, open_engine
from runtime.bench.figures import decode_step_s, tpot_s, ttft_s
from runtime.bench.scenarios import Offline, Request, Scenario, offline_scenario, prompts_of, traced
from runtime.cli.main import main
from runtime.errors import ConfigError

FIELD = ("decode_b1", "decode_b8", "decode_b64", "decode_b256", "decode_b8_long")
FIELD = ("startup", *FIELD, "prefill_16x4096", "mixed_256", "fixed_1024", "prefix_512")

# what the adapter uses of vLLM, over a device that gives every running request a token a step
FAKE_VLLM = """
import time
from types import SimpleNamespace
from vllm import sampling_params
from vllm.sampling_params import RequestOutputKind

class SamplingParams:
    def __init__(self, **given):
        self.__dict__.update(given)

class Engine:
    def __init__(self):
        self.model_config = SimpleNamespace(dtype="torch.bfloat16")
        self.running, self.asked = {}, []

    def add_request(self, request_id, prompt, params):
        assert request_id not in self.running
        self.asked.append((prompt["prompt_token_ids"], params))
        self.running[request_id] = [0, params]

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        time.sleep(0.002)
        outputs = []
        for request_id, state in list(self.running.items()):
            state[0] += 1
            finished = state[0] == state[1].max_tokens
            if finished:
                del self.running[request_id]
            new = 1 if state[1].output_kind is RequestOutputKind.DELTA else state[0] if finished else 0
            if new:
                metrics = SimpleNamespace(first_token_latency=0.002)
                outputs.append(SimpleNamespace(
                    request_id=request_id, finished=finished, metrics=metrics,
                    outputs=[SimpleNamespace(token_ids=[7] * new)]))
        return outputs

class LLM:
    made = []
    def __init__(self, model, **given):
        self.model, self.given, self.llm_engine, self.resets = model, given, Engine(), 0
        LLM.made.append(self)

    def reset_prefix_cache(self):
        self.resets += 1
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A package of that name, with metadata."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    kinds = "import enum\nRequestOutputKind = enum.Enum('RequestOutputKind', 'CUMULATIVE DELTA FINAL_ONLY')\n"
    (tmp_path / "vllm" / "sampling_params.py").write_text(kinds)
    (tmp_path / "vllm-0.0.7.dist-info").mkdir()
    (tmp_path / "vllm-0.0.7.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("vllm")
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def bench(capsys):
    """Rows that `runtime bench ... --json` prints."""

    def run(*arguments):
        assert main(["bench", *map(str, arguments), "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_the_field_is_the_same_table_for_two_engines(bench, tiny_llama):
    arguments = ("--suite", "field", "--model", tiny_llama, "--scale", 64, "--repeat", 1, "--device", "cpu")
    ours = bench(*arguments, "--engine", "runtime")
    theirs = bench("suite", *arguments, "--engine", "transformers")
    assert [row["scenario"] for row in ours] == list(FIELD)
    for mine, other in zip(ours, theirs):
        same = ("model", "tp", "scenario", "scale", "batch", "in", "out", "dtype", "counted", "device")
        assert [mine.get(name) for name in same] == [other.get(name) for name in same] and mine["scale"] == 64
        assert mine.keys() - other.keys() <= {"submit_s", "first_step_s", "settings"} and not other.keys() - mine.keys()
        name = "tpot_ms" if "tpot_ms" in mine else "s"
        assert mine[name] > 0 and other[name] > 0
    assert (ours[0]["engine"], theirs[0]["engine"]) == ("runtime", "transformers")
    assert theirs[0]["versions"]["transformers"] == transformers.__version__ and "runtime" in ours[0]["versions"]
    assert "runtime" not in theirs[0]["versions"]


def test_the_table_has_a_line_for_each_row(tiny_llama, capsys):
    verb = ["bench", "latency", "--model", str(tiny_llama), "--batch", "2", "--in", "8", "--out", "6", "--repeat", "1"]
    assert main(verb) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["engine", "model", "scenario", "batch"] and heading.endswith("of limit")
    assert line.split()[:6] == ["runtime", "tiny-llama", "decode_b2", "2", "8", "6"]
    assert "ms/step" in line and line.split()[-2:] == ["-", "-"]  # a CPU has no limit here


def test_transformers_pads_without_changing_an_answer(tiny_llama, reference, monkeypatch):
    prompts, lens = [[5, 9, 200], list(range(30, 50)), [7]], [6, 3, 9]
    mixin, given = transformers.GenerationMixin, []
    generate = mixin.generate

    def spy(self, *args, **kwargs):
        given.append((args[0], generate(self, *args, **kwargs)))
        return given[-1][1]

    monkeypatch.setattr(mixin, "generate", spy)
    engine = open_engine("transformers", str(tiny_llama), {"device": "cpu", "max_num_seqs": 3})
    times = engine.run([TimedRequest(p, n) for p, n in zip(prompts, lens)], every_token=True)
    engine.close()
    monkeypatch.undo()
    assert [len(one.token_s) for one in times] == lens
    assert len(given) == 1 and given[0][0].shape == (3, 20)  # one batch, as wide as the longest prompt
    for prompt, length, output in zip(prompts, lens, given[0][1].tolist()):
        settings = {"do_sample": False, "max_new_tokens": length, "eos_token_id": None, "pad_token_id": 0}
        alone = reference.generate(torch.tensor([prompt]), **settings)[0].tolist()
        assert output[20 : 20 + length] == alone[len(prompt) :]


def test_transformers_serves_in_batches_of_what_has_come(tiny_llama):
    engine = open_engine("transformers", str(tiny_llama), {"device": "cpu", "max_num_seqs": 2})
    closed = engine.run([TimedRequest([1, 2, 3], 4)] * 3)
    assert closed[0].last_s == closed[1].last_s < closed[2].first_s and closed[2].due_s == 0.0
    late = engine.run([TimedRequest([1, 2], 2, 0.0), TimedRequest([1, 2], 2, 0.3)], every_token=True)
    assert late[1].token_s[0] > 0.3 > late[0].token_s[-1] and late[1].due_s == 0.3
    engine.close()


def test_dummy_weights_need_no_checkpoint(bench, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    shape = ("--batch", 2, "--in", 4, "--out", 4, "--repeat", 1, "--load-format", "dummy", "--dtype", "bfloat16")
    (row,) = bench("latency", "--engine", "transformers", "--model", tmp_path, "--device", "cpu", *shape)
    assert row["dtype"] == "bfloat16" and row["model"] == tmp_path.name


def test_a_model_that_transformers_cannot_load_is_named(tiny_llama, tmp_path, capsys):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    arguments = ["--scenario", "decode_b1", "--engine", "transformers", "--model", str(tmp_path)]
    assert main(["bench", *arguments]) == 65
    assert f"--engine transformers cannot load {tmp_path}: " in capsys.readouterr().err


def test_vllm_is_asked_as_the_others_are(bench, vllm, tiny_llama):
    arguments = ("--model", tiny_llama, "--engine", "vllm", "--repeat", 2, "--max-num-batched-tokens", 64)
    (row,) = bench("latency", "--batch", 3, "--in", 8, "--out", 6, *arguments)
    (llm,) = vllm.LLM.made
    assert llm.model == str(tiny_llama) and llm.given["skip_tokenizer_init"] and llm.resets == 3
    assert llm.given["load_format"] == "safetensors"  # what is not would be unpickled
    assert (llm.given["max_num_seqs"], llm.given["max_model_len"], llm.given["max_num_batched_tokens"]) == (3, 14, 64)
    prompts = [prompt for prompt, _ in llm.llm_engine.asked]
    assert prompts == 3 * prompts_of(Scenario(3, 8, 6).requests, 384)
    params = llm.llm_engine.asked[0][1]
    assert (params.max_tokens, params.ignore_eos, params.detokenize, params.temperature) == (6, True, False, 0.0)
    assert row["tpot_ms"] >= 2 and row["dtype"] == "bfloat16" and row["versions"]["vllm"] == "0.0.7"
    assert row["itl_p50_ms"] >= 2 and "settings" not in row


def test_vllm_gives_whole_outputs_where_only_their_end_counts(bench, vllm, tiny_llama):
    (row,) = bench("throughput", "--batch", 4, "--in", 8, "--out", 5, "--engine", "vllm", "--model", tiny_llama)
    asked = vllm.LLM.made[0].llm_engine.asked
    assert {params.output_kind.name for _, params in asked} == {"FINAL_ONLY"}
    assert row["s"] >= 0.01 and row["ttft_p50_ms"] >= 2 and row["tok_s"] == pytest.approx(52 / row["s"], rel=0.01)


@pytest.mark.parametrize("engine", ["runtime", "transformers", "vllm"])
def test_an_open_loop_counts_from_when_a_request_is_due(bench, vllm, tiny_llama, tmp_path, engine):
    (tmp_path / "trace.csv").write_text("arrival_s,prompt_len,output_len\n0,8,3\n0.05,4,2\n0.4,6,4\n")
    (row,) = bench("throughput", "--trace", tmp_path / "trace.csv", "--engine", engine, "--model", tiny_llama)
    assert (row["scenario"], row["batch"], row["in"], row["out"]) == ("trace", 3, 6.0, 3.0) and row["s"] > 0.4
    assert row["e2e_p99_ms"] >= row["ttft_p99_ms"] > 0 and row["tpot_p50_ms"] > 0
    assert sum(count for _, count in row["itl_histogram"]) == 2 + 1 + 3
    shape = ("--batch", 4, "--in", 6, "--out", 4, "--rate", 50)
    (row,) = bench("latency", *shape, "--engine", engine, "--model", tiny_llama)
    assert (row["scenario"], row["rate"]) == ("fixed_4_rate", 50.0) and row["requests_per_s"] > 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("suite --engine vlm --suite field", "--engine=vlm: unknown engine; did you mean 'vllm'? (runtime, transf"),
        ("suite --suite fild", "unknown suite 'fild'; did you mean 'field'?"),
        ("suite", "by --suite NAME or --scenarios NAMES, one of them (suites: field, decode, offline)"),
        ("suite --suite field --scenarios decode_b1", "by --suite NAME or --scenarios NAMES, one of them"),
        ("--suite field --scale 0", "--scale=0: must be at least 1"),
        ("--suite field --repeat -1", "--repeat=-1: must be at least 1"),
        ("--scenario decode_b8_gaps --engine transformers", "decode_b8_gaps: only --engine runtime shows"),
        ("--scenario decode_b8 --engine transformers --step-log x", "--step-log: only --engine runtime records"),
        (
            "--scenario decode_b8 --engine transformers --block-size 4",
            "--block-size is not for --engine transformers",
        ),
        ("latency --scenario decode_b8 --batch 2", "--batch and --scenario do not go together: give one of them"),
        ("latency --out 3", "--out=3: must be at least 4"),
        ("latency --in 0", "--in=0: must be at least 1"),
        ("latency --overhead --engine transformers", "--overhead looks into steps, which --engine transformers does"),
        ("latency --overhead --rate 3", "--overhead and --rate do not go together"),
        ("throughput", "no --batch: requests are described by --batch, --in and --out together (or by --scenario"),
        ("throughput --scenario decode_b1", "unknown scenario 'decode_b1'"),
        ("throughput --scenario mixed_256 --rate 0", "--rate=0.0: must be a number of requests a second above 0"),
        ("throughput --scenario mixed_256 --rate nan", "--rate=nan: must be a number of requests a second above 0"),
        ("throughput --trace /no/such.csv", "cannot read /no/such.csv: No such file or directory"),
        ("throughput --trace x --rate 3", "--rate and --trace do not go together"),
        ("throughput --scenario mixed_256 --model /no/such/folder", "/no/such/folder"),
        ("throughput --scenario mixed_256 --engine transformers --model /no/such/folder", "/no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, arguments, sentence):
    assert main(["bench", *arguments.split()]) in (2, 65)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_an_engine_that_is_not_installed_is_named_with_its_command(capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["bench", "--scenario", "decode_b1", "--engine", name]) == 2
    assert f"--engine {name}: it is not installed (pip install {name})" in capsys.readouterr().err


def test_the_scenarios_are_listed(bench, capsys):
    (found,) = bench("suite", "--scenarios", "help")
    assert set(FIELD) <= set(found["scenarios"]) and tuple(found["suites"]["field"]) == FIELD


class TestFigures:
    def times(self, *token_s, due_s=0.0):
        return [RequestTimes(due_s, due_s, one[0], one[-1], one) for one in token_s]

    def test_a_decode_step_is_one_in_which_all_decode(self):
        # the second request begins at 5 and the first ends at 8: two steps of 1.5, none of the slow ones around
        assert decode_step_s(self.times([1, 4, 6.5, 8], [5, 6.5, 8, 20])) == pytest.approx(1.5)
        with pytest.raises(ConfigError, match="no step decoded all 2 requests"):
            decode_step_s(self.times([1, 2, 3], [4, 5, 6]))

    def test_tpot_leaves_the_first_token_out(self):
        assert tpot_s(self.times([10.0, 11.0, 13.0], [3.0])) == [1.5]
        assert ttft_s(self.times([10.0, 11.0], due_s=9.5)) == [0.5]

    def test_percentiles_are_values_that_occurred(self):
        assert percentiles_ms("x", [0.001 * i for i in range(1, 101)]) == {
            "x_p50_ms": 50.0,
            "x_p90_ms": 90.0,
            "x_p99_ms": 99.0,
        }
        assert percentiles_ms("x", []) == {}

    @pytest.mark.parametrize("seconds", [[0.01], [0.0, 0.0], [0.001 * 1.3**i for i in range(20)], [0.0, 1e-9, 50.0]])
    def test_every_gap_is_in_the_histogram(self, seconds):
        uppers, counts = zip(*histogram_ms(seconds))
        assert sum(counts) == len(seconds) and list(uppers) == sorted(uppers)
        assert max(seconds) * 1e3 <= uppers[-1] <= max(1e3 * max(seconds), 1e-3) * 1.26


class TestScenarios:
    def test_scaled_scenarios_keep_their_proportions(self):
        assert Scenario(64).scaled(16) == Scenario(4, 63, 16)
        assert Scenario(1).scaled(256) == Scenario(1, 4, 4)  # steps to time are left
        mixed, small = offline_scenario("mixed_256"), offline_scenario("mixed_256").scaled(8)
        assert len(small.requests) == 32 and small.num_tokens() == pytest.approx(mixed.num_tokens() / 64, rel=0.15)
        assert offline_scenario("prefix_512").scaled(64).requests[0] == Request(1, 1, shared_len=32)

    def test_a_rate_is_a_poisson_stream(self):
        requests = Offline((Request(1, 1),) * 4000, 0.0, "total").at_rate(20.0).requests
        arrivals = [one.arrival_s for one in requests]
        assert arrivals[0] == 0.0 and arrivals == sorted(arrivals)
        assert arrivals[-1] == pytest.approx(200, rel=0.1)

    def test_prefixes_of_a_trace_are_shared(self, tmp_path):
        lines = [
            {"arrival_s": i, "prompt_len": 9, "output_len": 1, "prefix_id": i % 2, "prefix_len": 5} for i in range(4)
        ]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        first, second, third, _ = prompts_of(traced(tmp_path / "t.jsonl").requests, 30000)
        assert first[:5] == third[:5] != second[:5] and first[5:] != third[5:] and len(first) == 9
