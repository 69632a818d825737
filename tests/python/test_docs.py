"""The documents stay true: links lead somewhere, and what they show runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_readme_names_every_page():
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in README] == []


def test_readme_python_runs():
    program = "\n".join(code_blocks(README, "python"))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "47" in result.stdout and "42" in result.stdout


def test_readme_cpp_is_the_example():
    example = (ROOT / "examples" / "scheduler_only" / "main.cpp").read_text()
    shown = [line.strip() for block in code_blocks(README, "cpp") for line in block.splitlines()]
    assert shown and [line for line in shown if line not in example] == []
