"""Each parser passes its first cases, and a case that fails names the command that replays it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
PARSERS = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__main__", "mutate", Path(__file__).stem)
)
FAILING = """
import runpy, sys, types
def make(folder):
    def case(rng):
        if rng.random() > 0.99: {fault}
    return case
sys.modules["stop_strings"] = types.SimpleNamespace(make=make)
sys.argv = ["fuzz", "stop_strings"]
runpy.run_path({folder!r}, run_name="__main__")
"""


def test_the_program_knows_every_parser():
    spec = importlib.util.spec_from_file_location("fuzz_main", FOLDER / "__main__.py")
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    assert sorted(main.PARSERS) == PARSERS


@pytest.mark.parametrize("parser", PARSERS)
def test_first_cases(parser):
    done = subprocess.run(
        [sys.executable, FOLDER, parser, "--cases", "500"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{parser}: 500 cases")


@pytest.mark.parametrize(
    "fault, name",
    [
        ("raise ValueError('no')", "ValueError"),
        ("bytearray(1 << 29)", "MemoryError"),
        ("import os; os.abort()", "ended by SIGABRT"),
    ],
)
def test_a_failing_case_names_its_command(fault, name):
    program = FAILING.format(fault=fault, folder=str(FOLDER))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"seed 153: {name}; alone: python tests/fuzz stop_strings --seed 153 --cases 1" in done.stderr
