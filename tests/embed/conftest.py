"""Builds the C++ tests of the embedding against the installed package."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.__main__ import cmake_dir

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "tests-embed"


def tool(name: str) -> str:
    """Of this environment, which need not be activated."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


@pytest.fixture(scope="session")
def libruntime() -> Path:
    return cmake_dir().parent / "lib" / "libruntime.so"


@pytest.fixture(scope="session")
def build_folder(libruntime) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # one worker builds, the others find it built
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [tool("cmake"), "-S", ROOT / "tests" / "embed", "-B", BUILD, "-G", "Ninja"]
        settings = [f"-Druntime_DIR={cmake_dir()}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        for command in ([*configure, *settings], [tool("cmake"), "--build", BUILD]):
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert result.returncode == 0, result.stdout + result.stderr
    return BUILD
