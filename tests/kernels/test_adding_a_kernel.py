"""Runs the code of docs/adding_a_kernel.md as a newcomer would: each block in the file that the page names."""

import importlib
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import compile_cases
import pytest

from runtime.kernels import ops, reference

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_kernel.md"


def _run_marked(test, **fixtures):
    """Calls a test function with every combination of its parameters but those for a GPU alone."""
    marks = [mark.args for mark in test.pytestmark]
    names = [name for name, _ in marks]
    choices = [[v for v in values if not getattr(v, "marks", ())] for _, values in marks]
    combinations = list(itertools.product(*choices))
    for values in combinations:
        test(**dict(zip(names, values)), **fixtures)
    return len(combinations)


def _load(name, path, source, monkeypatch):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Puts the page's blocks in place, the kernel after `edit`; gives the kernel, its tests and the other blocks."""

    def build(edit=lambda kernel: kernel):
        blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
        reference_code, dispatch, kernel, tests, case = blocks
        functions = dict(vars(reference))
        exec(reference_code, functions)
        monkeypatch.setattr(reference, "squared_relu", functions["squared_relu"], raising=False)
        module = _load("runtime.kernels.squared_relu", tmp_path / "squared_relu.py", edit(kernel), monkeypatch)
        return module, _load("page_tests", tmp_path / "test_squared_relu.py", tests, monkeypatch), dispatch, case

    return build


def test_the_page_adds_an_op(page, device):
    module, page_tests, dispatch, case = page()
    assert _run_marked(page_tests.test_matches_reference, device=device) == 9
    assert _run_marked(page_tests.test_reads_strided_rows, device=device) == 3

    names = dict(vars(ops))
    exec(dispatch, names)
    x = compile_cases.empty(3, 5).to(device).fill_(-1)
    assert not names["squared_relu"](x).any()
    narrow = {"squared_relu": lambda x: module.squared_relu(x[:, :100].to(device))}
    assert eval(case, vars(compile_cases) | narrow).launch().shape == (8, 100)


def test_a_broken_kernel_fails_the_pages_test(page, device):
    _, page_tests, _, _ = page(lambda kernel: kernel.replace("mask = cols < width", "mask = cols < width - 1"))
    with pytest.raises(AssertionError):
        _run_marked(page_tests.test_matches_reference, device=device)
