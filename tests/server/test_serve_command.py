"""`runtime serve`: where its settings come from, and what it says."""

import os
import socket
import subprocess
import sys

import pytest

from runtime.cli.main import main


@pytest.fixture
def serve(capsys, monkeypatch):
    """Runs `runtime serve` in this process with variables; (exit code, stdout, stderr). It must not get to serving."""

    def call(*arguments, **variables):
        for name in [name for name in os.environ if name.startswith("RUNTIME_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(["serve", *map(str, arguments)])
        except SystemExit as exit_:
            code = exit_.code
        for name in variables:
            monkeypatch.delenv(name)
        return code, *capsys.readouterr()

    return call


def printed(serve, *arguments, **variables):
    code, out, err = serve("--print-config", *arguments, **variables)
    assert code == 0, err
    return dict(line.split(" = ", 1) for line in out.splitlines() if " = " in line)


def test_flags_go_before_variables_before_the_file_before_defaults(serve, tmp_path):
    file = tmp_path / "runtime.toml"
    file.write_text('[serve]\nport = 1\nmax-num-seqs = 2\ndtype = "float32"\napi-key = ["from-file"]\n')
    found = printed(serve, "--config", file, "--port", 3, RUNTIME_PORT="4", RUNTIME_MAX_NUM_SEQS="5")
    assert found["port"] == "3  # flag" and found["max_num_seqs"] == "5  # RUNTIME_MAX_NUM_SEQS"
    assert found["dtype"] == f'"float32"  # {file}' and found["host"] == '"127.0.0.1"  # default'
    assert found["api_key"].startswith('["***"]')  # a secret is not printed
    assert printed(serve, RUNTIME_CONFIG=str(file))["port"] == f"1  # {file}"
    assert printed(serve, RUNTIME_DETERMINISTIC="yes")["deterministic"] == "true  # RUNTIME_DETERMINISTIC"
    assert printed(serve, "--no-enable-prefix-caching")["enable_prefix_caching"] == "false  # flag"
    assert printed(serve, RUNTIME_ALLOWED_HOST="a, b")["allowed_host"] == '["a", "b"]  # RUNTIME_ALLOWED_HOST'


def test_what_print_config_prints_is_a_config_file(serve, tmp_path):
    code, out, _ = serve("--print-config", "--port", 7, "--served-model-name", 'a "name"\\')
    file = tmp_path / "again.toml"
    file.write_text(out)
    again = printed(serve, "--config", file)
    assert code == 0 and again["port"] == f"7  # {file}"
    assert again["served_model_name"] == f'"a \\"name\\"\\\\"  # {file}'


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("[serve]\nprot = 1", "unknown name 'prot' in [serve]; did you mean 'port'"),
        ("[server]\nport = 1", "unknown table [server]; did you mean 'serve'?"),
        ("port = 1", "unknown table [port]"),
        ("[serve]\nport = 'x'", "port='x': must be an integer"),
        ("[serve]\ndeterministic = 1", "deterministic=1: must be true or false"),
        ("[serve]\nport = [1]", "port=[1]: must be one value"),
        ("[serve]\napi-key = [1]", "must be a list of texts"),
        ("[serve", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused(serve, tmp_path, text, sentence):
    file = tmp_path / "runtime.toml"
    file.write_text(text)
    code, out, err = serve("--config", file, "--print-config")
    assert (code, out) == (2, "") and sentence in err


@pytest.mark.parametrize(
    "arguments, variables, code, sentence",
    [
        (["--prot", 1], {}, 2, "unknown flag '--prot'; did you mean '--port'"),
        ([], {"RUNTIME_PROT": "1"}, 2, "unknown variable RUNTIME_PROT; did you mean 'RUNTIME_PORT'"),
        ([], {"RUNTIME_PORT": "x"}, 2, "RUNTIME_PORT='x': must be an integer"),
        ([], {"RUNTIME_DETERMINISTIC": "maybe"}, 2, "must be true or false"),
        (["--config", "/nowhere.toml"], {}, 2, "/nowhere.toml: No such file"),
        (["--port", 99999], {}, 2, "port=99999: must be an integer between 0 and 65535; nearest: 65535"),
        (
            [],
            {"RUNTIME_MAX_CONNECTIONS": "0"},
            2,
            "max_connections=0: must be an integer between 1 and 1048576; nearest: 1",
        ),
        (["--max-queued-requests", -1], {}, 2, "must be an integer between 0 and 2147483647; nearest: 0"),
        (["--body-timeout", 100000], {}, 2, "must be a number of seconds between 0 and 86400; nearest: 86400"),
        (["--host", "0.0.0.0"], {}, 2, "an API key is needed (--api-key or RUNTIME_API_KEY"),
        (["--host", "no-such-host.invalid", "--insecure-no-auth", "--dry-run"], {}, 2, "cannot listen on"),
        (["--header-timeout", 0], {}, 2, "header_timeout=0"),
        (["--log-format", "xml"], {}, 2, "must be one of text, json"),
        (["--block-size", 17], {}, 2, "block_size=17: must be a power of two"),
        (["/nowhere/model", "--dry-run"], {}, 65, "no model folder /nowhere/model"),
        (["/nowhere/model"], {}, 65, "no model folder /nowhere/model"),
    ],
)
def test_bad_settings_are_refused(serve, arguments, variables, code, sentence):
    found, out, err = serve(*arguments, **variables)
    assert found == code and sentence in err, err


def test_limits_in_a_file_name_the_nearest_value(serve, tmp_path):
    file = tmp_path / "runtime.toml"
    for text, sentence in (
        ("port = 99999", "port=99999: must be an integer between 0 and 65535; nearest: 65535"),
        ("max-queued-requests = -1", "max_queued_requests=-1: must be an integer between 0 and 2147483647; nearest: 0"),
    ):
        file.write_text(f"[serve]\n{text}")
        code, _, err = serve("--config", file, "--dry-run")
        assert code == 2 and sentence in err


def test_a_dry_run_checks_and_plans(serve):
    code, out, err = serve("--dry-run", "--port", 0, "--num-kv-blocks", 64)
    assert code == 0, err
    assert out.startswith("would serve builtin at 127.0.0.1 port ") and "kv_blocks" in out and "weights" in out


def test_a_taken_port_is_said_before_the_model_loads(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = serve("--port", taken.getsockname()[1])
    assert code == 2 and "cannot listen on 127.0.0.1 port" in err and "--port" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_every_verb_and_flag(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("serve", "generate", "max-num-seqs", "api-key", "dry-run"):
        assert word in script


def test_the_bash_script_completes():
    script = subprocess.run([sys.executable, "-m", "runtime", "completion", "bash"], capture_output=True, text=True)

    def completed(*words):
        given = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        line = f'{script.stdout}\n{given}; _runtime; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout.split()

    assert completed("runtime", "ser") == ["serve"]
    assert completed("runtime", "serve", "--max-queu") == ["--max-queue-time", "--max-queued-requests"]
    assert completed("runtime", "bench", "lat") == ["latency"]
