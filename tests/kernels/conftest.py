"""Kernel tests: in Triton's interpreter on tiny shapes, or on a CUDA device (`-m gpu` selects all of them there)."""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # harness.py and its like are imported by name


def _make_kernels_importable():
    """In a fresh copy of the tree nothing is built: runtime/__init__.py wants the C++ core, the kernels do not."""
    try:
        importlib.import_module("runtime")
    except ImportError:
        sys.modules.pop("runtime", None)
        spec = importlib.machinery.ModuleSpec("runtime", loader=None, is_package=True)
        spec.submodule_search_locations = [str(HERE.parents[1] / "python" / "runtime")]
        sys.modules["runtime"] = importlib.util.module_from_spec(spec)


_make_kernels_importable()
if not torch.cuda.is_available():
    import interpreter

    interpreter.install()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        for item in items:
            if HERE in item.path.parents and "device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty starts as NaN (integers: the largest value), so that what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with np.errstate(over="ignore", invalid="ignore"):  # exp of masked lanes in the interpreter
        yield
    torch.use_deterministic_algorithms(False)
