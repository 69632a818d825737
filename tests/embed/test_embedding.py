"""`runtime::Engine` in C++ programs: the same answers as Python's, and a clear word when there is no Python to host."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime import LLM, SamplingParams

PROMPTS = [
    "12+35=",
    "40+2=",
    "907-18=",
    "reverse(abcd)=",
    "sort(53142)=",
    "x",
    *(f"{a}+{3 * a}=" for a in range(10, 26)),
]
SCORED = [("12+35=", "47"), ("12+35=", "48"), ("reverse(abc)=", "cba")]
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+")


@pytest.fixture(scope="module")
def expected_outputs(tmp_path_factory) -> Path:
    """What Python's engine says, in the words of tests/embed/test_engine.cpp."""
    lines = []
    with LLM(device="cpu", max_num_seqs=32, num_kv_blocks=512) as llm:
        params = [SamplingParams(seed=i, temperature=0.0 if i % 2 else 0.9, max_tokens=24) for i in range(len(PROMPTS))]
        for one, output in zip(params, llm.generate(PROMPTS, params, use_tqdm=False)):
            token_ids = "".join(f"{token_id} " for token_id in output.outputs[0].token_ids)
            text = output.outputs[0].text
            assert not set(text) & {"\n", "\t"}
            lines.append(["generate", str(one.seed), str(one.temperature), output.prompt, token_ids, text])
        for prompt, continuation in SCORED:
            logprobs = " ".join(f"{score:.6f}" for score in llm.score(prompt, continuation))
            lines.append(["score", prompt, continuation, logprobs])
    path = tmp_path_factory.mktemp("embed") / "expected"
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("suite", ["EngineTest", "EngineErrorsTest", "EngineLivesTest"])
def test_in_cpp(suite, build_folder, expected_outputs):
    environment = {**os.environ, "EXPECTED_OUTPUTS": str(expected_outputs)}
    command = [build_folder / "test_engine", f"--gtest_filter={suite}.*", "--gtest_brief=1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SKIPPED" not in result.stdout


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_library_links_only_the_system(libruntime):
    def readelf(what: str) -> str:
        return subprocess.run(
            ["readelf", "--wide", what, libruntime], check=True, capture_output=True, text=True
        ).stdout

    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic"))
    assert needed and [name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", readelf("--dynamic"))
    symbols = re.findall(r"(\S+)$", readelf("--dyn-syms"), re.MULTILINE)
    assert [name for name in symbols if re.match(r"_?Py|cuda|nccl", name)] == []


class TestStart:
    """The example program, which prints `code: message` and the hint of the error that it meets."""

    @pytest.fixture
    def start(self, build_folder, libruntime, tmp_path):
        """Runs it with a copy of the library that lies in no environment."""
        copy = shutil.copy(libruntime, tmp_path / "libruntime.so")

        def run(**environment: str) -> str:
            variables = {"LD_PRELOAD": str(copy), "PATH": "/nowhere", "HOME": str(tmp_path), **environment}
            result = subprocess.run(
                [build_folder / "embed"], env=variables, capture_output=True, text=True, timeout=120
            )
            assert result.returncode == 1 and result.stdout == ""
            return result.stderr

        return run

    def test_without_a_python(self, start):
        error = start(VIRTUAL_ENV="/no/such/environment")
        assert error.startswith("python_not_found: no Python was found")
        for place in ("$RUNTIME_PYTHON: not set", "/no/such/environment/bin/python3", "/nowhere/python3"):
            assert place in error
        assert "EngineConfig::python" in error  # what to do

    def test_with_a_python_that_is_not_there(self, start):
        assert "RUNTIME_PYTHON=/no/python: not an executable file" in start(RUNTIME_PYTHON="/no/python")

    def test_without_the_shared_library_of_python(self, start, tmp_path):
        python = tmp_path / "python3"
        python.write_text("#!/bin/sh\necho libpython0.0.so.1.0\n")
        python.chmod(0o755)
        error = start(PATH=str(tmp_path))
        assert f"the shared library of {python} was not found" in error
        assert "libpython0.0.so.1.0: cannot open shared object file" in error
        assert "package libpython3" in error

    def test_without_the_package(self, start):
        error = start(RUNTIME_PYTHON=sys._base_executable)
        assert error.startswith("python_not_found: ")
        assert "cannot import the package: ModuleNotFoundError: No module named 'runtime'" in error
        assert f"pip install runtime-llm=={runtime.__version__}" in error

    def test_with_another_version_of_the_package(self, start, tmp_path):
        package = tmp_path / "packages" / "runtime"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "_core.py").write_text("__version__ = '9.9.9'\n")
        error = start(RUNTIME_PYTHON=sys._base_executable, PYTHONPATH=str(package.parent))
        assert f"has version 9.9.9 of the package, and libruntime is {runtime.__version__}" in error

    def test_with_another_build_of_the_package(self, start, tmp_path):
        package = tmp_path / "packages" / "runtime"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "_core.py").write_text(f"__version__ = '{runtime.__version__}'\n")
        error = start(RUNTIME_PYTHON=sys._base_executable, PYTHONPATH=str(package.parent))
        assert "of different builds" in error


def test_the_example_answers(build_folder):
    result = subprocess.run([build_folder / "embed"], capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == ["12+35=47", "40+2=42", "reverse(abcd)=dcba"], result.stderr
