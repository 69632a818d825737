"""The programs in examples/ run on the built-in model and print what they promise."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str) -> str:
    result = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_shared_prefix_is_computed_once():
    lines = run("shared_prefix.py").splitlines()
    assert lines[0].startswith("12+35=47")
    assert all("(0 of" not in line for line in lines)


def test_race_has_a_right_winner():
    assert "47" in run("race.py")


def test_every_example_is_tested():
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}")' not in source] == []
