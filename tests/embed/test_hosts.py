"""Engines in programs that link, start or end a Python of their own, with shared and static builds of Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.__main__ import cmake_dir

SOURCES = Path(__file__).resolve().parent
DEBIAN_PYTHON = "/usr/bin/python3"
# for a compiler: the folder of Python.h and the library that programs link
ASK = """
import json, os, sysconfig
get = sysconfig.get_config_var
name = f"libpython{get('LDVERSION')}.so"
folders = [get("LIBDIR"), os.path.join(get("LIBDIR"), get("MULTIARCH") or "")]
paths = [os.path.join(folder, name) for folder in folders if os.path.exists(os.path.join(folder, name))]
print(json.dumps([sysconfig.get_path("include"), paths[0] if paths else None]))
"""


class HostPython:
    """An interpreter that a program can link, and an environment of it that sees this one's packages."""

    def __init__(self, python: str, folder: Path) -> None:
        answer = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, check=True, timeout=60)
        self.include, self.library = json.loads(answer.stdout)
        self._folder = folder
        self.interpreter = str(folder / "venv" / "bin" / "python3")
        subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=60)
        (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
        packages = [path for path in sys.path if path.endswith("site-packages")]
        site.joinpath("packages.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in packages))

    def build(self) -> Path:
        """python_host.cpp against this interpreter's library."""
        import pybind11

        program, libruntime = self._folder / "python_host", cmake_dir().parent / "lib"
        includes = [self.include, pybind11.get_include(), cmake_dir().parent / "include"]
        libraries = [self.library, libruntime / "libruntime.so"]
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-fvisibility=hidden", "-o", program]
        command += [f"-I{folder}" for folder in includes] + [SOURCES / "python_host.cpp", *libraries]
        command += [f"-Wl,-rpath,{Path(library).parent}" for library in libraries]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return program


def run(*command: object, **environment: str) -> str:
    """What it prints; it must end well."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def other_pythons():
    """Debian's, whose python3 is static, unless this is it or it is of another version."""
    if not Path(DEBIAN_PYTHON).exists() or Path(sys._base_executable).resolve() == Path(DEBIAN_PYTHON).resolve():
        return []
    version = subprocess.run([DEBIAN_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True)
    return [DEBIAN_PYTHON] if version.stdout.decode().split() == [str(n) for n in sys.version_info[:2]] else []


@pytest.fixture(scope="module", params=[sys._base_executable, *other_pythons()])
def host_python(request, tmp_path_factory):
    found = HostPython(request.param, tmp_path_factory.mktemp("host"))
    if found.library is None:
        pytest.skip(f"{request.param} has no shared library to link")
    return found


@pytest.fixture(scope="module")
def program(host_python):
    return host_python.build()


class TestProgramsThatLinkPython:
    def test_engines_come_and_go_beside_it(self, program, host_python):
        refusal = "invalid_argument: this thread holds the GIL, without which the engine cannot go on"
        assert run(program, "beside", host_python.interpreter).splitlines() == [
            f"start with the GIL: {refusal}",
            "without the GIL: 47",
            "without the GIL: 47",
            f"wait with the GIL: {refusal}",
            "42",
        ]

    def test_engines_end_with_it(self, program, host_python):
        assert run(program, "finalized", host_python.interpreter).splitlines() == [
            "its request: request_aborted: the engine was destroyed",
            "later request: request_aborted: the engine is drained and takes no more requests",
            "stats: request_aborted: Python has ended, and the engine with it",
            "later engine: python_not_found: the program has finalized the Python of this process",
        ]

    def test_the_first_engine_starts_it(self, program, host_python):
        assert run(program, "unstarted", host_python.interpreter).splitlines() == ["47", "start: no error"]

    def test_an_interpreter_of_another_version_is_refused(self, program, tmp_path):
        other = tmp_path / "python3"
        other.write_text("#!/bin/sh\necho 3.99\n")
        other.chmod(0o755)
        assert f"{other} is Python 3.99, and this process has loaded the library of Python 3." in run(
            program, "unstarted", other
        )


class TestProgramsThatLinkNoPython:
    def test_they_find_the_library_of_an_interpreter(self, build_folder, host_python):
        assert run(build_folder / "embed", RUNTIME_PYTHON=host_python.interpreter).startswith("12+35=47\n")

    def test_they_find_the_environment_that_is_active(self, build_folder, libruntime, tmp_path):
        copy = shutil.copy(libruntime, tmp_path / "libruntime.so")  # in no environment
        venv = {"VIRTUAL_ENV": sys.prefix, "LD_PRELOAD": str(copy)}
        assert run(build_folder / "embed", **venv).startswith("12+35=47\n")

    def test_they_use_the_one_that_a_plugin_has_opened(self, build_folder, host_python):
        assert run(build_folder / "plugin_host", host_python.library, host_python.interpreter) == "47\n"


@pytest.mark.parametrize("python", other_pythons())  # test_c_api.py itself is this one
def test_an_interpreter_that_calls_the_library(python, tmp_path):
    name = "answers_are_those_of_this_interpreters_engine"
    options = ["-k", name, "-n", "0", "-q", "-p", "no:cacheprovider"]
    host = HostPython(python, tmp_path)
    assert "1 passed" in run(host.interpreter, "-m", "pytest", SOURCES / "test_c_api.py", *options)
