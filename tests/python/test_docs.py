"""The documents stay true: links lead somewhere, and what they show runs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
README = (ROOT / "README.md").read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.split("\0")[:-1]


# these two pages also name the files that their reader will write
@pytest.mark.parametrize("page", [page for page in PAGES if not page.stem.startswith("adding_a")], ids=lambda p: p.name)
def test_files_in_backticks_are_there(page):
    files = [f"/{name}" for name in tracked_files()]
    named = re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|pyi|h|cpp|md|json|jsonl|toml|sh))`", page.read_text())
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def signatures(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, set[str]]]:
    """(name, parameters and attributes) of each class and function of a stub; `Class.method` for methods."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
            yield from signatures(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            name = owner.removesuffix(".") if node.name == "__init__" else owner + node.name
            yield f"{name}()", {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}


def test_the_core_api_is_that_of_the_stub():
    """Every class, method and parameter in the page's block; the stub may have more."""
    stub = dict(signatures(ast.parse((ROOT / "python" / "runtime" / "_core.pyi").read_text())))
    section = (ROOT / "docs" / "architecture.md").read_text().split("\n## `_core`\n")[1]
    block = re.sub(r"  +#.*", "", section.split("```")[1])
    owner, found = "", []
    for line in re.sub(r",\n\s+", ", ", block).splitlines():
        name = re.match(r"(\w+)", line)
        owner = name[1] if name else owner
        for dot, called, arguments in re.findall(r"(?:^|;|, )\s*(\.?)(\w+)\(([^()]*)\)", line):
            full = f"{owner}.{called}" if dot else called
            words = {word for word in re.findall(r"(?:^|, )(\w+)(?==|,|$)", arguments)}
            found.append(full)
            assert words <= stub[f"{full}()"], f"{full}: {sorted(words - stub[f'{full}()'])}"
    assert len(found) > 50


def test_readme_names_every_page():
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in README] == []


def test_readme_shows_every_verb():
    named = {verb for verb in VERBS if f"runtime {verb}" in README}
    assert set(VERBS) - named == {"version"}
    used = {words[1] for block in code_blocks(README, "sh") for words in re.findall(r"\b(runtime) ([a-z]+)", block)}
    assert used <= set(VERBS)


def test_the_map_names_every_folder():
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    files = [file for file in tracked_files() if "/" in file]
    folders = {Path(file).parts[0] for file in files} - {".ci"}
    for place in ("csrc", "python/runtime"):
        folders |= {Path(file).relative_to(place).parts[0] for file in files if file.startswith(place)}
    folders = {name for name in folders if "." not in name}
    assert len(folders) > 20 and {name for name in folders if name not in table} == set()


def test_benchmark_commands_are_understood():
    """Each, with one step of work instead of many, and no file."""
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    commands = [line for block in code_blocks(page, "sh") for line in block.splitlines()]
    assert commands
    for command in commands:
        words = re.sub(r" --append \S+", "", command).split()
        if words[0] == "tools/gpu.sh":  # needs a GPU; what it is given are parts that it has
            parts = " ".join(re.findall(r"^\w+_parts=\((.*)\)$", (ROOT / words[0]).read_text(), re.MULTILINE)).split()
            assert set(words[words.index("--out") + 2 :]) <= set(parts)
            continue
        assert words[:2] == ["runtime", "bench"]
        assert main([*words[1:], "--steps", "1", "--json"]) == 0


def test_readme_python_runs():
    program = "\n".join(code_blocks(README, "python"))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "47" in result.stdout and "42" in result.stdout


def test_readme_cpp_is_an_example():
    examples = [path.read_text() for path in (ROOT / "examples").glob("*/main.cpp")]
    blocks = [[line.strip() for line in block.splitlines()] for block in code_blocks(README, "cpp")]
    assert blocks
    for block in blocks:
        assert any(all(line in example for line in block) for example in examples), block


def test_the_tables_show_what_the_rows_say():
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "benchmark_tables.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
