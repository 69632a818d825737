"""The command line: what it prints, its exit codes, one sentence and no traceback for what a user did wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import runtime
from runtime.cli import doctor
from runtime.cli.main import VERBS, main


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command line in this process; (exit code, stdout, stderr)."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse
            code = exit_.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy of the tiny llama to damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def test_generate_writes_the_text_and_a_speed_line(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "-p", "the fox", "--max-tokens", 5, "--ignore-eos")
    assert code == 0 and out.endswith("\n")
    assert "5 tokens in" in err and "tok/s" in err
    assert run("generate", tiny_llama, "--max-tokens", 5, "--ignore-eos", stdin="the fox")[1] == out


def test_generate_json_of_a_schema(run, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}')
    code, out, _ = run("generate", "-p", "12+35=", "--json-schema", schema)
    assert code == 0 and [type(item) for item in json.loads(out)] == [bool, bool]
    schema.write_text("{")
    for path, words in ((schema, "structured_outputs.json is not JSON"), (tmp_path / "none", "cannot be read")):
        code, _, err = run("generate", "-p", "x", "--json-schema", path)
        assert code == 2 and words in err and "Traceback" not in err


def test_generate_json(run, tiny_llama):
    arguments = ("generate", tiny_llama, "-p", "a", "-p", "b", "--json", "--logprobs", 2, "--max-tokens", 3, "--stats")
    arguments += ("--prompt-logprobs", 1, "--bad-words", "the")
    code, out, err = run(*arguments, "--ignore-eos")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["prompt"] for row in rows] == ["a", "b"]
    assert all(len(row["token_ids"]) == len(row["logprobs"]) == 3 for row in rows)
    assert all(row["prompt_logprobs"][0] is None and "the" not in row["text"] for row in rows)
    assert rows[0]["finish_reason"] == "length" and rows[0]["metrics"]["output_tokens"] == 3
    assert json.loads(err.splitlines()[-1])["num_output_tokens"] == 6


def test_the_built_in_model_is_the_default(run):
    code, out, err = run("generate", "-p", "12+35=")
    assert (code, out) == (0, "47\n")
    assert err.startswith("built-in model: ") and err.count("\n") == 2


def test_chat_answers_and_takes_commands(run, tiny_llama):
    typed = [
        "hello",
        "/params temperature=0.5 max_tokens=4",
        "/help",
        "/reset",
        "/stats",
        "/halp",
        "/params temperature=9",
    ]
    stdin = "\n".join([*typed, "bye", "/exit", "no"])
    code, out, err = run("chat", tiny_llama, "--max-tokens", 6, "--system", "s", stdin=stdin)
    assert code == 0
    assert "temperature=0.5" in out and "/reset" in out and "num_running" in out
    assert "unknown command '/halp'; did you mean '/help'" in err
    assert "temperature=9: must be" in err


def test_inspect(run, tiny_llama):
    code, out, _ = run("inspect", tiny_llama, "--tensors")
    assert code == 0
    assert "model_type             llama" in out and "tp_sizes               1, 2, 4" in out
    assert "model.norm.weight  [64]  float32  model.safetensors" in out
    found = json.loads(run("inspect", tiny_llama, "--json")[1])
    assert found["vocab_size"] == 384 and found["chat_template"] is True and found["eos_token_ids"] == [1]


def test_doctor(run):
    code, out, _ = run("doctor", "--json")
    findings = {row["subject"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0 and {"python", "torch", "triton", "driver", "gpus", "shm", "open files"} <= set(findings)
    assert all(row["status"] in ("OK", "WARN") for row in findings.values())
    assert run("doctor")[1].startswith("OK   python")


def test_doctor_fails_with_the_fix_where_something_is_too_old_or_cannot_be_asked(run, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    code, out, _ = run("doctor")
    assert code == 69 and "FAIL torch        2.10.1+cpu; pip install 'torch>=2.11'" in out.splitlines()
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.setattr(doctor, "CHECKS", {"python": doctor.CHECKS["python"], "broken": lambda: 1 // 0})
    code, out, _ = run("doctor")
    assert code == 69 and out.splitlines()[1].startswith("FAIL broken       ZeroDivisionError: ")
    monkeypatch.setattr(doctor, "CHECKS", {"shm": lambda: (doctor.WARN, "little", "give it more")})
    assert run("doctor")[:2] == (0, "WARN shm          little; give it more\n")


@pytest.mark.parametrize(
    "shell, lines",
    [
        (
            "bash",
            ['convert) words="--dtype --help --max-shard-size --overwrite"', 'doctor) words="--help --json --port"'],
        ),
        ("zsh", ['convert) words="--dtype --help --max-shard-size --overwrite"']),
        ("fish", ["from convert' -l max-shard-size", "from doctor' -l port"]),
    ],
)
def test_completion_knows_every_verb_and_flag(run, shell, lines):
    code, out, _ = run("completion", shell)
    assert code == 0 and all(line in out for line in lines) and all(verb in out for verb in VERBS)


def test_version(run):
    code, out, _ = run("version")
    assert code == 0 and out.startswith(f"runtime {runtime.__version__}\n")
    assert run("--version")[1] == out


def test_bench(run, tiny_llama, tmp_path):
    rows = tmp_path / "rows.jsonl"
    shape = ("--batch", 2, "--in", 8, "--out", 6)
    code, out, _ = run("bench", "latency", "--model", tiny_llama, *shape, "--json", "--append", rows, "--repeat", 1)
    row = json.loads(out)
    assert code == 0 and (row["model"], row["batch"], row["in"], row["out"]) == ("tiny-llama", 2, 8, 6)
    assert row["tpot_ms"] > 0 and row["dtype"] == "float32" and row["device"] and row["versions"]["torch"]
    code, out, _ = run("bench", "latency", "--model", tiny_llama, *shape, "--json", "--overhead", "--steps", 5)
    row = json.loads(out)
    parts = sum(row[f"{name}_us"] for name in ("prepare_step", "model", "sample", "overhead"))
    assert parts == pytest.approx(row["step_us"], rel=0.5) and row["scenario"] == "overhead_b2"
    assert run("bench", "scheduler", "--batch", 4, "--steps", 50, "--append", rows)[0] == 0
    assert run("bench", "scheduler", "--prefix-hit", "--in", 64, "--append", rows)[0] == 0
    scenarios = [json.loads(line)["scenario"] for line in rows.read_text().splitlines()]
    assert scenarios == ["decode_b2", "scheduler_b4", "prefix_hit_64"]


def test_help_lists_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0 and all(verb in out for verb in VERBS)
    assert run()[0] == 2
    for verb in VERBS:
        assert run(verb, "--help")[0] == 0


@pytest.mark.parametrize(
    "arguments, code, sentence",
    [
        (["genrate"], 2, "unknown verb 'genrate'; did you mean 'generate'"),
        (["generate", "--temprature", "1"], 2, "unknown flag '--temprature'; did you mean '--temperature'"),
        (["generate", "m", "extra"], 2, "unknown argument 'extra'"),
        (["generate", "-p", "x", "--max-tokens", "many"], 2, "--max-tokens='many': must be an integer"),
        (["inspect", "--plan", "--device-memory", "inf"], 2, "--device-memory='inf': must be a number of bytes"),
        (["completion", "bsh"], 2, "shell='bsh': must be one of bash, zsh, fish; did you mean 'bash'"),
        (["bench", "latnecy"], 2, "bench: unknown verb 'latnecy'; did you mean 'latency'"),
        (["bench", "latency", "--bacth", "0"], 2, "bench latency: unknown flag '--bacth'; did you mean '--batch'"),
        (["inspect", "--plan", "--log-level", "loud"], 2, "log_level='loud': must be one of debug, info"),
        (["generate", "-p", "x", "--temperature", "-1"], 2, "temperature=-1"),
        (["generate", "-p", "x", "--max-tokens", "0"], 2, "max_tokens=0: must be between 1 and"),
        (["generate", "-p", ""], 2, "prompt='': must be at least one token"),
        (["generate", "-p", "1+1=" * 999], 2, "must be at most 1023 tokens (max_model_len is 1024)"),
        (
            ["generate", "-p", "x", "--load-format", "pt"],
            2,
            "load_format='pt': must be one of auto, safetensors, dummy",
        ),
        (["generate", "-p", "x", "--block-size", "12"], 2, "block_size=12: must be a power of two; nearest: 8"),
        (["generate", "-p", "x", "--max-model-len", "5000"], 2, "max_model_len=5000: from 1 to 1024 is possible"),
        (["generate", "-p", "x", "--num-kv-blocks", "2", "--max-model-len", "99"], 69, "needs 7 KV blocks"),
        (["generate", "no-such-folder", "-p", "x"], 65, "no model folder no-such-folder"),
        (["inspect", "no-such-folder"], 65, "no model folder no-such-folder (a model is a folder on this machine)"),
        (["generate", "", "-p", "x"], 2, "model='': must be the path of a folder"),
        (["generate", "a prompt without -p " * 300], 65, "no model folder 'a prompt without -p"),
        (["generate", "two\nlines"], 65, "no model folder 'two\\nlines'"),
        (["generate", "-p", "x", "--step-timeout", "nan"], 2, "step_timeout=nan: must be a positive number"),
        (["bench", "scheduler", "--append", "/no/such/rows"], 2, "--append=/no/such/rows: there is no folder /no/such"),
        (["bench", "latency", "--scenario", "decode_b7"], 2, "unknown scenario 'decode_b7'"),
        (["bench", "scheduler", "--batch", "0"], 2, "--batch=0: must be at least 1"),
        (["bench", "scheduler", "--prefix-hit", "--in", "16"], 2, "--in=16: must be above a block of 16 tokens"),
    ],
)
def test_bad_command_lines(run, arguments, code, sentence):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert sentence in err
    assert "Traceback" not in err and len(err.strip().splitlines()) == (2 if err.startswith("built-in") else 1)


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_standard_input_that_is_no_text(verb):
    process = command(verb, stdin=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"})
    os.write(process.stdin.fileno(), b"a\xff\n")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "standard input is not text" in err and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device(run):
    code, _, err = run("generate", "-p", "x", "--device", "cuda")
    assert code == 69 and "torch sees no CUDA device" in err


def damage_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_tensors(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors |= {"extra.weight": torch.zeros(3), "model.norm.weight": torch.zeros(5)}
    save_file(tensors, folder / "model.safetensors")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "damage, sentences",
    [
        (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
        (lambda folder: damage_config(folder, model_type="lama"), ["'lama' is unknown; known: bloom, llama"]),
        (lambda folder: damage_config(folder, hidden_size=-3), ["hidden_size=-3"]),
        (truncate, ["truncated"]),
        (
            other_tensors,
            ["missing: model.layers.1.mlp.up_proj.weight", "unused: extra.weight", "mis-shaped: model.norm"],
        ),
        (pickled, ["pytorch_model.bin is not read"]),
        (lambda folder: damage_config(folder, vocab_size=300), ["300"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("{"),
            ["tokenizer_config.json is not valid JSON"],
        ),
    ],
)
@pytest.mark.parametrize("verb", [["inspect"], ["generate", "-p", "x"]])
def test_bad_folders(run, folder, damage, sentences, verb):
    damage(folder)
    code, out, err = run(verb[0], folder, *verb[1:])
    assert (code, out) == (65, "")
    assert all(sentence in err for sentence in sentences) and "Traceback" not in err


def test_a_vocabulary_that_does_not_match_names_both_numbers(run, folder, make_tokenizer):
    make_tokenizer(folder, vocab_size=500)
    for verb in (["inspect"], ["generate", "-p", "x"]):
        code, _, err = run(verb[0], folder, *verb[1:])
        assert code == 65 and "knows 500 tokens, but the model's vocabulary has 384" in err


def test_no_chat_template(run, folder, make_tokenizer):
    make_tokenizer(folder, chat_template=None)
    code, out, err = run("chat", folder, stdin="hello\n")
    assert code == 0 and "has no chat template" in err


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_an_interrupt_ends_with_130():
    def take_interrupts():  # whoever runs the tests in the background ignores them, and so would the child
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    # the built-in model has room for an answer that takes seconds
    arguments = ["generate", "-p", "x", "--max-tokens", 1000, "--ignore-eos", "--deterministic"]
    process = command(*arguments, preexec_fn=take_interrupts)
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err


def test_start_is_quick_and_loads_no_torch():
    begin = time.monotonic()
    script = "import sys, runtime.cli.main as m; m.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("False\n") and time.monotonic() - begin < 5


def test_cmake_dir_holds_the_package_config():
    out, _ = command("--cmake-dir").communicate(timeout=20)
    assert os.path.isfile(os.path.join(out.strip(), "runtimeConfig.cmake"))


def test_a_closed_pipe_is_no_failure(tiny_llama):
    process = command("generate", tiny_llama, *["-p", "x"] * 9, "--json")
    process.stdout.close()
    process.stderr.read()
    process.stderr.close()
    process.wait(20)
    assert process.returncode == 141
