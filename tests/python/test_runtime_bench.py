"""runtime-bench: what it links, what it does without Python, and that it says what Python says."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import _core
from runtime.bench.limits import decode_step_s, on_paper
from runtime.cli import bench, simulate
from runtime.cli.main import main
from runtime.cli.parser import ArgumentParser
from runtime.simulation import load_calibration, roofline

CONFIGS = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs"
ROWS = CONFIGS.parent
LLAMA_8B = str(CONFIGS / "llama-3.1-8b")
# beside the interpreter; .ci/run names that of a wheel
PROGRAM = Path(os.environ.get("TEST_RUNTIME_BENCH") or Path(sys.executable).with_name("runtime-bench"))
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|libpthread|ld-linux-.*)\.so\.\d+")
NATIVE = ("scheduler", "simulate", "roofline", "compare")

pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason=f"{PROGRAM} is not installed")


def run(*words, program=PROGRAM, **environment):
    """With no environment but what is given, so with no PATH."""
    command = [str(word) for word in (program, *words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd="/")


def rows_of(result):
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def alone(tmp_path):
    """A copy with no interpreter beside it."""
    return Path(shutil.copy(PROGRAM, tmp_path / "runtime-bench"))


@pytest.fixture
def script(tmp_path):
    """Writes a shell script that stands for an interpreter."""

    def write(text):
        path = tmp_path / "interpreter"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_links_only_the_system():
    command = [shutil.which("readelf"), "--dynamic", PROGRAM]
    dynamic = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert needed and [name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_version_is_that_of_the_package():
    assert run("--version").stdout == f"runtime-bench {_core.__version__}\n"


def test_every_subcommand_of_the_package_has_its_name():
    parser = ArgumentParser()
    bench.add_arguments(parser)
    (choices,) = [action.choices for action in parser._actions if action.dest == "what"]
    listed = re.findall(r"^  ([a-z]+) ", run("--help").stdout, re.MULTILINE)
    assert set(choices) <= set(listed)


@pytest.mark.parametrize("name", NATIVE)
def test_native_subcommands_explain_themselves(alone, name):
    result = run(name, "--help", program=alone)
    assert result.returncode == 0 and result.stdout.startswith(f"usage: runtime-bench {name} [flags]")


@pytest.mark.parametrize(
    "words, code, text",
    [
        ((), 2, "usage: runtime-bench SUBCOMMAND"),
        (("compar",), 2, "unknown subcommand 'compar'; did you mean 'compare'? (`runtime-bench --help` lists all)"),
        (("scheduler", "--bach", "3"), 2, "scheduler: unknown flag '--bach'; did you mean '--batch'"),
        (("scheduler", "--batch"), 2, "--batch needs a value: N,N"),
        (("scheduler", "--batch", "1,x"), 2, "--batch=x: must be an integer"),
        (("scheduler", "--batch", "5000"), 2, "--batch=5000: must be between 1 and 4096; nearest: 4096"),
        (("scheduler", "--steps", "0"), 2, "--steps=0: must be between 1 and"),
        (("scheduler", "--json=1"), 2, "--json takes no value"),
        (("scheduler", "--append", "/no/folder/x"), 2, "cannot add to /no/folder/x: No such file or directory"),
        (("scheduler", "x"), 2, "unknown argument 'x'"),
        (("roofline",), 2, "no MODEL was given (see runtime-bench roofline --help)"),
        (("roofline", "/no/model"), 65, "/no/model: no folder with config.json is there"),
        (("roofline", LLAMA_8B, "--device", "h20"), 2, "unknown device 'h20'; did you mean 'h200'"),
        (("roofline", LLAMA_8B, "--tp", "3"), 2, "tp=3: must divide the model's 32 heads"),
        (("roofline", LLAMA_8B, "--prompt", "4x"), 2, "--prompt=4x: must be N or KxN, such as 16x4096"),
        (("roofline", LLAMA_8B, "--bandwidth", "nan"), 2, "--bandwidth=nan: must be a number"),
        (("compare", "/no/file", "/no/other"), 2, "cannot read /no/file: No such file or directory"),
        (("simulate",), 2, "0 sources of step times: exactly one is needed"),
        (("simulate", "--config", LLAMA_8B, "--workload", "azure"), 2, "did you mean 'azure-code'"),
        (("simulate", "--config", LLAMA_8B, "--policy", "lifo"), 2, "policy='lifo': must be one of fcfs"),
        (("simulate", "--config", LLAMA_8B, "--kv-tokens", "3"), 2, "--kv-tokens 3: must be at least 16"),
        (("simulate", "--config", LLAMA_8B, "--workload", "arxiv"), 2, "workload arxiv has no rate of its own"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, code, text):
    result = run(*words)
    assert result.returncode == code and result.stdout == ""
    assert text in result.stderr
    assert words == () or (result.stderr.startswith("runtime-bench: ") and result.stderr.count("\n") == 1)


def test_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 70 and "cannot write standard output: No space left on device" in result.stderr


class TestPython:
    def test_without_any_it_says_what_was_searched(self, alone):
        result = run("latency", program=alone, PATH="/nowhere", VIRTUAL_ENV="/no/env")
        assert result.returncode == 69
        for part in ("$RUNTIME_PYTHON: not set", f"beside the program: {alone.parent}/python3", "/no/env/bin/python3"):
            assert part in result.stderr
        assert "$PATH: /nowhere/python3" in result.stderr and "libruntime" not in result.stderr

    def test_becomes_the_interpreter_with_the_same_words(self, script):
        python = script('echo "$$"; shift 2; for word in "$@"; do echo "$word"; done; exit 7')
        command = [PROGRAM, "latency", "--batch", "3", "two words"]
        process = subprocess.Popen(command, env={"RUNTIME_PYTHON": python}, stdout=subprocess.PIPE, text=True)
        lines = process.communicate(timeout=60)[0].splitlines()
        assert lines == [str(process.pid), _core.__version__, "bench", "latency", "--batch", "3", "two words"]
        assert process.returncode == 7

    @pytest.mark.parametrize(
        "words, passed",
        [
            (("--suite", "field"), ["bench", "--suite", "field"]),
            (("simulate", "--trace=x.csv", "--tp", "2"), ["simulate", "--trace=x.csv", "--tp", "2"]),
        ],
    )
    def test_what_is_passed_on(self, script, words, passed):
        python = script('shift 3; for word in "$@"; do echo "$word"; done')
        assert run(*words, RUNTIME_PYTHON=python).stdout.splitlines() == passed

    def test_an_interpreter_that_cannot_run(self, tmp_path):
        broken = tmp_path / "broken"
        broken.write_bytes(b"\x7fELF")
        broken.chmod(0o755)
        result = run("latency", RUNTIME_PYTHON=str(broken))
        assert result.returncode == 69 and f"{broken} cannot be run: Exec format error" in result.stderr
        result = run("latency", RUNTIME_PYTHON="/no/python")
        assert result.returncode == 69 and "RUNTIME_PYTHON=/no/python: not an executable file" in result.stderr

    @pytest.mark.skipif(not getattr(sys, "_base_executable", None), reason="needs the interpreter of the environment")
    def test_the_package_must_be_there_in_this_version(self, tmp_path):
        python = sys._base_executable
        result = run("latency", RUNTIME_PYTHON=python, PYTHONNOUSERSITE="1")
        assert result.returncode == 69 and "cannot import the package: No module named 'runtime'" in result.stderr
        (tmp_path / "runtime").mkdir()
        (tmp_path / "runtime" / "__init__.py").write_text("__version__ = '0.0.1'\n")
        result = run("latency", RUNTIME_PYTHON=python, PYTHONPATH=str(tmp_path))
        assert result.returncode == 69 and "has version 0.0.1 of the package" in result.stderr
        assert f"pip install runtime-llm=={_core.__version__} there" in result.stderr

    def test_the_working_directory_is_no_place_for_the_package(self, tmp_path):
        (tmp_path / "runtime").mkdir()
        (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit(99)\n")
        command = [PROGRAM, "scheduler", "--help"], [PROGRAM, "latency", "--help"]
        for words in command:
            result = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0 and "usage: runtime" in result.stdout


class TestScheduler:
    def test_rows_hold_medians_and_runs(self, alone, tmp_path):
        file = tmp_path / "rows.jsonl"
        flags = ("--batch", "2,4", "--steps", "20", "--repeat", "3", "--in", "64", "--json", "--append", file)
        rows = rows_of(run("scheduler", *flags, program=alone, SOURCE_COMMIT="abc"))
        assert [row["scenario"] for row in rows] == ["scheduler_core_b2", "scheduler_core_b4", "prefix_hit_core_64"]
        for row in rows:
            assert row["device"].endswith(" cores") and row["commit"] == "abc"
            for name, runs in row["runs"].items():
                assert len(runs) == 3 and row[name] == sorted(runs)[1]
        assert all(row["schedule_us"] > 0 and row["update_us"] > 0 for row in rows[:2])
        assert [json.loads(line) for line in file.read_text().splitlines()] == rows

    def test_prints_a_table(self):
        result = run("scheduler", "--batch", "3", "--steps", "5", "--repeat", "1", "--in", "32")
        assert result.returncode == 0 and re.search(r"scheduler_core_b3 +\d+\.\d\d us", result.stdout)

    def test_progress_shows_on_a_terminal_only(self):
        terminal, side = pty.openpty()
        process = subprocess.Popen(
            [PROGRAM, "scheduler", "--repeat", "1000"], stdout=subprocess.DEVNULL, stderr=side, env={}
        )
        try:
            assert select.select([terminal], [], [], 60)[0] and b"scheduler: " in os.read(terminal, 100)
        finally:
            process.kill()
            process.wait()
            os.close(side)
            os.close(terminal)


class TestRoofline:
    def test_rows_are_the_limits_of_the_benchmarks(self, alone):
        rows = {row["scenario"]: row for row in rows_of(run("roofline", LLAMA_8B, "--json", program=alone))}
        limit = decode_step_s(on_paper(Path(LLAMA_8B)), 64, 1128, "NVIDIA H200")
        assert rows["decode_b64"]["tpot_ms"] == pytest.approx(limit * 1e3, abs=1e-4)
        assert rows["capacity"]["kv_tokens"] == roofline(LLAMA_8B).kv_tokens
        assert rows["prefill_16x4096"]["tok_s"] == pytest.approx(52400, rel=0.02)

    @pytest.mark.parametrize("model", ["bloom-7b1", "qwen3-0.6b"])
    def test_other_models_are_read_as_python_reads_them(self, model):
        (row, *_) = rows_of(run("roofline", CONFIGS / model / "config.json", "--json"))
        assert row["model"] == model and row["kv_tokens"] == roofline(CONFIGS / model).kv_tokens

    def test_a_device_is_named_or_described(self):
        slow = rows_of(run("roofline", LLAMA_8B, "--device", "H100", "--batch", "1", "--json"))[1]
        as_slow = rows_of(run("roofline", LLAMA_8B, "--bandwidth", "3e12", "--batch", "1", "--json"))[1]
        assert slow["device"] == "NVIDIA H100 80GB HBM3" and slow["tpot_ms"] == as_slow["tpot_ms"]
        assert slow["tpot_ms"] > 1.4 * rows_of(run("roofline", LLAMA_8B, "--batch", "1", "--json"))[1]["tpot_ms"]

    def test_prints_a_table(self):
        result = run("roofline", LLAMA_8B, "--tp", "2", "--ctx", "1000,2000")
        assert result.returncode == 0 and "8.03 billion parameters" in result.stdout
        assert len(re.findall(r"^decode_b64 ", result.stdout, re.MULTILINE)) == 2

    def test_a_config_that_is_wrong(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama",\n "hidden_size": x}')
        result = run("roofline", tmp_path)
        assert result.returncode == 65 and "config.json: line 2, column 17: expected a value" in result.stderr


class TestCompare:
    def test_benchmarks_beside_their_limits_and_peers(self, alone, tmp_path):
        limits = tmp_path / "limits.jsonl"
        limits.write_text(run("roofline", LLAMA_8B, "--device", "h100", "--json").stdout)
        measured = ROWS / "gpu_h100.jsonl"
        pairs = rows_of_pairs(run("compare", limits, measured, "--json", program=alone))
        by_hand = [json.loads(line) for line in measured.open() if "decode_b64" in line and "8b" in line][
            -1
        ]  # the newest
        assert pairs["llama-3.1-8b decode_b64", "tpot_ms"]["ratio"] == pytest.approx(
            by_hand["pct_of_limit"] / 100, abs=1e-3
        )

    @pytest.mark.parametrize("name", ["allreduce", "cpu", "gpu", "gpu_h100", "kernels", "peers"])
    def test_a_file_equals_itself(self, name):
        pairs = rows_of_pairs(run("compare", ROWS / f"{name}.jsonl", ROWS / f"{name}.jsonl", "--json"))
        assert pairs and all(row["ratio"] in (None, 1.0) for row in pairs.values())

    def test_intervals_and_the_gate(self, tmp_path):
        a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        a.write_text('{"scenario": "x", "s": 1.0, "runs": {"s": [1.0, 1.02, 0.98]}}\n')
        b.write_text('{"scenario": "x", "s": 1.5, "runs": {"s": [1.5, 1.53, 1.47]}}\n')
        (row,) = rows_of(run("compare", a, b, "--json"))
        assert row["ratio"] == pytest.approx(2 / 3, rel=1e-6) and row["low"] < 2 / 3 < row["high"]
        result = run("compare", a, b, "--fail-below", "0.9")
        assert result.returncode == 1 and "x: s is 0.667 times as good, below 0.9" in result.stderr
        assert run("compare", a, b, "--fail-below", "0.6").returncode == 0
        assert run("compare", b, a, "--fail-below", "1").returncode == 0

    def test_a_gate_goes_by_what_the_runs_show(self, tmp_path):
        a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        a.write_text('{"scenario": "x", "s": [1.0, 1.2]}\n')
        b.write_text('{"scenario": "x", "s": [1.1, 1.3]}\n')
        assert run("compare", a, b, "--fail-below", "0.99").returncode == 0  # the scatter allows it
        a.write_text('{"scenario": "x", "s": 1.0}\n')
        b.write_text('{"scenario": "x", "s": 1.1}\n')
        result = run("compare", a, b, "--fail-below", "0.99")
        assert result.returncode == 1 and "single run" in result.stdout

    def test_files_that_have_nothing_in_common(self, tmp_path):
        a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        a.write_text('{"scenario": "x", "s": 1.0}\n')
        b.write_text('{"scenario": "y", "s": 1.0}\n')
        result = run("compare", a, b)
        assert result.returncode == 2 and "no row like it in the other file" in result.stderr
        b.write_text('{"scenario": "x", "tok_s": 1.0}\n')
        assert "no figure in common" in run("compare", a, b).stderr
        b.write_text('{"scenario": "x"\n "s": 1.0}\n')
        assert f"{b}, line 2, column 2: expected ',' or '}}', found '\"'" in run("compare", a, b).stderr


def rows_of_pairs(result):
    assert result.returncode == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {(row["measurement"], row["figure"]): row for row in rows}


SIMULATIONS = [
    ("--num-requests", "300"),
    ("--workload", "mooncake", "--rate", "20", "--num-requests", "200", "--seed", "3", "--tp", "2"),
    ("--workload", "fixed:300,100", "--concurrency", "64", "--num-requests", "300", "--kv-tokens", "20000"),
    ("--workload", "uniform:10,400", "--queue-depth", "8", "--num-requests", "200", "--max-tokens", "500",
     "--num-blocks", "900", "--admission", "none", "--eviction", "cost", "--cpu-kv-tokens", "30000"),
    ("--rate", "60", "--num-replicas", "3", "--router", "prefix_aware", "--num-trees", "4", "--segment-len", "64",
     "--num-requests", "300", "--num-threads", "2", "--slo-ttft-ms", "200", "--slo-gap-ms", "50"),
    ("--rate", "inf", "--num-requests", "200", "--policy", "fair", "--target-itl-ms", "20", "--bandwidth", "2e12",
     "--max-num-batched-tokens", "2048", "--no-enable-prefix-caching", "--block-size", "32", "--launch-s", "1e-4"),
]  # fmt: skip


class TestSimulate:
    def test_knows_every_flag_of_the_package(self):
        parser = ArgumentParser()
        simulate.add_arguments(parser)
        flags = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
        assert flags - set(re.findall(r"--[a-z0-9-]+", run("simulate", "--help").stdout)) == set()

    @pytest.mark.parametrize("flags", SIMULATIONS)
    def test_figures_are_those_of_the_package(self, capsys, flags):
        words = ["simulate", "--config", LLAMA_8B, *flags, "--json", "-"]
        assert main(words) == 0
        assert figures(run(*words).stdout) == figures(capsys.readouterr().out)

    def test_a_calibration_file_means_the_same(self, capsys, tmp_path, alone):
        file = tmp_path / "times.json"
        roofline(LLAMA_8B).save(file)
        words = ["simulate", "--calibration", str(file), "--num-requests", "200", "--json", "-"]
        assert main(words) == 0
        assert figures(run(*words, program=alone).stdout) == figures(capsys.readouterr().out)

    @pytest.mark.parametrize(
        "change",
        [
            {"version": 99},
            {"unknown": 1},
            {"buckets": None},
            {"buckets": [[1, 0.0, 0.0]]},
            {"buckets": [[0, 0.0, 0.0, 0.0]]},
            {"row_s": "x"},
            {"row_s": -1.0},
            {"repeated_tile_share": 2.0},
            {"kv_tokens": -1},
            {"max_graph_rows": 1.5},
        ],
    )
    def test_both_refuse_the_same_calibration_files(self, tmp_path, change):
        file = tmp_path / "times.json"
        roofline(LLAMA_8B).save(file)
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ValueError):
            load_calibration(file)
        result = run("simulate", "--calibration", file)
        assert result.returncode == 2 and (str(file) in result.stderr or "must be" in result.stderr)

    def test_prints_a_table_and_writes_json(self, alone, tmp_path):
        file = tmp_path / "figures.json"
        flags = ("--config", LLAMA_8B, "--num-requests", "50", "--json", file)
        result = run("simulate", *flags, program=alone)
        assert result.returncode == 0 and re.search(r"^output_tok_s +\d", result.stdout, re.MULTILINE)
        assert json.loads(file.read_text())["requests_done"] == 50

    def test_records_and_replays(self, alone, tmp_path):
        log = tmp_path / "events"
        flags = ("--config", LLAMA_8B, "--num-requests", "50")
        assert run("simulate", *flags, "--event-log", log, program=alone).returncode == 0
        result = run("simulate", "--replay", log, "--json", "-", program=alone)
        assert result.returncode == 0 and json.loads(result.stdout)["same"] is True
        log.write_bytes(log.read_bytes()[:-100])
        result = run("simulate", "--replay", log, program=alone)
        assert result.returncode == 1 and result.stderr.startswith("runtime-bench: ")


def figures(text):
    """All but what the simulation itself took; Python writes NaN where JSON has null."""
    found = json.loads(text, parse_constant=lambda _: None)
    return {name: value for name, value in found.items() if name not in ("wall_s", "cpu_s", "steps_per_cpu_s")}
