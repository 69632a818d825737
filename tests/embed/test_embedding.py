"""`runtime::Engine` in C++ programs: the same answers as Python's, and a clear word when there is no Python to host."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import runtime

SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+")


@pytest.mark.parametrize("suite", ["EngineTest", "EngineErrorsTest", "EngineLivesTest"])
def test_in_cpp(suite, build_folder, python_outputs):
    # by Python's own allocator its objects would not show in what the process has allocated
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    if suite == "EngineTest":
        environment["EXPECTED_OUTPUTS"] = str(python_outputs())
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


def test_public_headers_compile_alone(libruntime):
    """As C++20, and the interface of C as C too."""
    include = libruntime.parent.parent / "include"
    headers = sorted(include.glob("runtime/*.h"))
    compilers = [("c++", "c++20", header) for header in headers] + [("c", "c11", include / "runtime" / "runtime_c.h")]
    assert len(headers) > 10
    for language, standard, header in compilers:
        options = ["-x", language, f"-std={standard}", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
        command = [os.environ.get("CXX", "c++"), *options, "-include", header, os.devnull]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, f"{header}: {result.stderr}"


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
