"""`runtime bench startup`: phases that add up to the whole."""

import json
import sys

import pytest

from runtime.cli.main import main
from runtime.start_timer import StartTimer

ENGINE = ("--device", "cpu", "--num-kv-blocks", "64")
OWN = {"interpreter", "imports", "config", "device", "tokenizer", "memory_plan", "weights", "device_copy", "kv_cache"}
OWN |= {"tables", "runner", "kernels", "graphs", "ranks"}


@pytest.fixture
def startup(capsys):
    """Runs the command; (exit code, rows, stderr)."""

    def run(*arguments):
        code = main(["bench", "startup", "--json", *arguments])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_phases_of_every_rank_add_up(startup):
    code, [row], err = startup(*ENGINE, "--tensor-parallel-size", "2", "--kernel-cache", "keep")
    assert code == 0, err
    assert (row["scenario"], row["tp"], row["dtype"], row["kernel_cache"]) == ("startup_keep", 2, "float32", "keep")
    assert set(row["phases_s"]) == OWN and 0 < row["phases_s"]["imports"] < row["s"]
    total = sum(row["phases_s"].values())
    assert 0.95 * row["s"] <= total <= row["s"] + 0.05  # a process's age is known to a hundredth
    assert row["covered_pct"] == pytest.approx(100 * total / row["s"], abs=0.5)
    [other] = row["rank_phases_s"]
    assert set(other) == OWN - {"config"}
    # it starts when rank 0 has imported and checked the model, and is ready when that is
    begun = sum(row["phases_s"][name] for name in ("interpreter", "imports", "config", "device"))
    assert 0.5 * (row["s"] - begun) < sum(other.values()) <= row["s"] - begun + 0.1


def test_a_servers_start_has_the_engines_phases(startup):
    code, [row], err = startup(*ENGINE, "--http", "--kernel-cache", "keep")
    assert code == 0, err
    own = {"server_imports", "server_config", "server_engine", "server_listen"}
    assert row["scenario"] == "startup_http_keep" and set(row["phases_s"]) == OWN | own
    assert 0.95 * row["s"] <= sum(row["phases_s"].values()) <= row["s"] + 0.05


def test_a_cold_start_finds_no_kernel_and_a_warm_one_those_of_the_start_before(startup, monkeypatch, tmp_path):
    probe = tmp_path / "python"
    probe.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib\n"
        "cache = pathlib.Path(os.environ['TRITON_CACHE_DIR'])\n"
        "found = float(len(list(cache.iterdir())))\n"
        "(cache / f'kernel{found}').touch()\n"
        "print(json.dumps({'dtype': 'x', 'startup': [{'found': found}]}))\n"
    )
    probe.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(probe))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "mine"))
    for state, expected in (("cold", [("cold", 0)]), ("warm", [("warm", 1)]), ("both", [("cold", 0), ("warm", 1)])):
        code, rows, err = startup("--kernel-cache", state)
        assert code == 0, err
        assert [(row["kernel_cache"], row["phases_s"]["found"]) for row in rows] == expected
    assert not (tmp_path / "mine").exists()


@pytest.mark.gpu
def test_a_warm_start_on_a_gpu_compiles_nothing(startup):
    shape = ("--num-kv-blocks", "64", "--max-num-seqs", "8", "--max-num-batched-tokens", "64")
    code, [cold, warm], err = startup("--device", "cuda", *shape, "--kernel-cache", "both")
    assert code == 0, err
    assert cold["phases_s"]["kernels"] > 2 * warm["phases_s"]["kernels"] > 0 and warm["phases_s"]["graphs"] > 0
    assert cold["covered_pct"] >= 95 and warm["covered_pct"] >= 95


@pytest.mark.parametrize(
    "arguments, code, sentence",
    [
        (("--kernel-cache", "wram"), 2, "must be one of warm, cold, both, keep; did you mean 'warm'"),
        (("--block-size", "17"), 2, "block_size=17: must be a power of two"),
        (("--model", "/nowhere"), 65, "no model folder /nowhere"),
        (("--max-model-len", "4096", "--device", "cpu"), 2, "max_model_len=4096: from 1 to 1024 is possible"),
    ],
)
def test_what_cannot_start_is_one_sentence(startup, arguments, code, sentence):
    found, rows, err = startup(*arguments)
    assert (found, rows) == (code, []) and sentence in err and len(err.splitlines()) == 1


def test_a_timer_leaves_no_gap():
    timer = StartTimer("one", begun_s=100.0)
    timer.enter("two")
    timer.enter("one")
    found = timer.stop()
    assert list(found) == ["one", "two"] and found["one"] >= 100 and 0 <= found["two"] < 1
    timer.enter("late")
    assert StartTimer.of_process("start").stop()["start"] > 0
