"""What a user gets: one package that loads everywhere, with the C++ side inside."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import runtime
from runtime import _core

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+")


def dynamic_section(library: Path) -> str:
    return subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout


def project_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def wheel_files() -> list[zipfile.ZipInfo]:
    if "TEST_WHEEL" not in os.environ:
        pytest.skip("needs a wheel built from the sdist in $TEST_WHEEL; .ci/run makes one")
    with zipfile.ZipFile(os.environ["TEST_WHEEL"]) as wheel:
        return wheel.infolist()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_core_links_only_the_system():
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic_section(Path(_core.__file__)))
    assert needed
    assert [name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)] == []


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_core_has_no_search_path_of_the_build_machine():
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic_section(Path(_core.__file__)))


def test_version_is_written_once():
    version = project_version()
    assert (runtime.__version__, _core.__version__) == (version, version)
    assert importlib.metadata.version("runtime-llm") == version


def test_kernels_and_models_load_under_one_name_only():
    names = "import sys, runtime.kernels, runtime.models; print(sorted({'kernels', 'models'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_wheel_holds_every_file_of_the_package_as_a_real_file(wheel_files):
    inside = {info.filename for info in wheel_files}
    for folder, prefix in (("kernels", "runtime/kernels"), ("models", "runtime/models"), ("python/runtime", "runtime")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = {f"{prefix}/{path.relative_to(ROOT / folder)}" for path in files} - inside
        assert not missing, f"{folder}: {sorted(missing)}"


def test_wheel_holds_no_link(wheel_files):
    symlink = 0o120000
    assert [info.filename for info in wheel_files if (info.external_attr >> 16) & 0o170000 == symlink] == []


def test_wheel_serves_cpp_programs(wheel_files):
    inside = {info.filename for info in wheel_files}
    public = [path for path in (ROOT / "csrc" / "include").rglob("*.h")]
    wanted = {f"runtime/include/{path.relative_to(ROOT / 'csrc' / 'include')}" for path in public}
    wanted |= {"runtime/include/runtime/version.h", "runtime/lib/libruntime_core.a", "runtime/lib/libruntime.so"}
    wanted |= {"runtime/cmake/runtimeConfig.cmake", "runtime/cmake/runtimeTargets.cmake", "runtime/py.typed"}
    assert wanted - inside == set()


def test_wheel_holds_nothing_of_the_repository_alone(wheel_files):
    top = {info.filename.split("/")[0] for info in wheel_files}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {"runtime"}


def test_wheel_brings_one_program(wheel_files):
    program = [info for info in wheel_files if ".data/" in info.filename]
    assert [info.filename.split(".data/")[1] for info in program] == ["scripts/runtime-bench"]
    assert (program[0].external_attr >> 16) & 0o111  # may be run
