#!/usr/bin/env python3
"""Makes the project's virtual environment and installs the project into it, editable.

`tools/run` and `tools/test` call this first; it returns at once when nothing it depends on has changed. Edits in
python/, kernels/ and models/ need no new set-up; edits in csrc/ rebuild the extension.

It needs python3 and a C++ compiler. The rest comes from pip, or from apt where only apt has it. Without an NVIDIA
driver the CPU build of torch is installed; TORCH_DEVICE=cpu or cuda overrides that. The environment's folder is
$VENV_DIR, by default .venv.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tools" / "constraints-cpu.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MIN_PYTHON = (3, 10)
GTEST_HEADERS = [Path("/usr/include/gtest/gtest.h"), Path("/usr/local/include/gtest/gtest.h")]


class SetupError(Exception):
    """The message is all that the user needs."""


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def torch_device() -> str:
    """Which build of torch to install: $TORCH_DEVICE, or what the driver says."""
    chosen = os.environ.get("TORCH_DEVICE") or detect_device()
    if chosen not in ("cpu", "cuda"):
        raise SetupError(f"TORCH_DEVICE={chosen}: cpu or cuda is needed; leave it unset to ask the driver")
    return chosen


def detect_device() -> str:
    """'cuda' where an NVIDIA driver answers, else 'cpu'."""
    if Path("/proc/driver/nvidia/version").exists():
        return "cuda"
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def missing_apt_packages(groups: Sequence[str]) -> list[str]:
    found = {
        "g++": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "python3-venv": find_spec("venv") is not None and find_spec("ensurepip") is not None,
        "python3-dev": Path(sysconfig.get_path("include"), "Python.h").exists(),
        "libgtest-dev": "test" not in groups or any(header.exists() for header in GTEST_HEADERS),
    }
    return [package for package, present in found.items() if not present]


def install_apt_packages(packages: Sequence[str]) -> None:
    if not packages:
        return
    line = f"apt-get install -y {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(f"first run, as root: {line}")
    say(line)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        result = subprocess.run(["apt-get", "-qq", *command], env=environment, text=True, capture_output=True)
        if result.returncode != 0:
            raise SetupError(f"apt-get {command[0]} failed: {result.stderr.strip()}")


def sources() -> Iterator[Path]:
    """Files whose change needs a new install: the build's, not the Python code's."""
    yield from (ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", CONSTRAINTS, Path(__file__).resolve())
    for folder in ("csrc", "cmake"):
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())


def fingerprint() -> str:
    """Changes with the sources, the interpreter and the places of the project and of the interpreter."""
    digest = hashlib.sha256(f"{ROOT}\0{sys.base_prefix}\0{sys.version}".encode())
    for path in sources():
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Stamp:
    """Records, inside the environment, for which device it was made and which parts are complete."""

    def __init__(self, venv: Path) -> None:
        self._path = venv / "setup.json"
        record = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.device: str | None = record.get("device")
        self._done: dict[str, str] = record.get("done", {})

    @property
    def parts(self) -> set[str]:
        return set(self._done)

    def is_complete(self, device: str, parts: Sequence[str], key: str) -> bool:
        return self.device == device and all(self._done.get(part) == key for part in parts)

    def begin(self, device: str) -> None:
        self._write(device, {})

    def finish(self, device: str, parts: Sequence[str], key: str) -> None:
        self._write(device, dict.fromkeys(parts, key))

    def _write(self, device: str, done: dict[str, str]) -> None:
        self.device, self._done = device, done
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"device": device, "done": done}))
        temporary.replace(self._path)


@contextmanager
def exclusive() -> Iterator[None]:
    """Two set-ups of one checkout run one after the other."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def torch_attempts(device: str) -> list[list[str]]:
    """Arguments of `pip install` for torch, in order of trial: configured indexes, then PyTorch's own CPU index."""
    if device == "cuda" or sys.platform != "linux":
        return [["torch>=2.11"]]
    configured = ["--constraint", str(CONSTRAINTS), "torch"]
    return [configured, ["--extra-index-url", TORCH_CPU_INDEX, "--retries", "2", *configured]]


def project_arguments(device: str, groups: Sequence[str]) -> list[list[str]]:
    """Arguments of `pip install`, in order: build tools and groups, then the project itself."""
    pins = ["--constraint", str(CONSTRAINTS)] if device == "cpu" else []
    chosen = [word for group in ("build", *groups) for word in ("--group", group)]
    return [[*pins, *chosen], [*pins, "--no-build-isolation", "--editable", str(ROOT)]]


def pip(venv: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"  # the build finds cmake and ninja of the environment
    environment = {**os.environ, "PATH": path, "PIP_NO_INPUT": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True)


def pip_install(venv: Path, what: str, *attempts: Sequence[str]) -> None:
    started = time.monotonic()
    say(f"{what} ...")
    for arguments in attempts:
        result = pip(venv, arguments)
        if result.returncode == 0:
            say(f"{what}: {time.monotonic() - started:.0f} s")
            return
    sys.stderr.write(result.stdout + result.stderr)
    raise SetupError(f"pip could not install {what}; its last words are above")


def has_pip(venv: Path) -> bool:
    try:
        probe = subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True)
    except OSError:
        return False
    return probe.returncode == 0


def make_environment(venv: Path) -> None:
    say(f"environment in {venv}")
    # the base interpreter: an activated environment cannot clear itself
    python = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([python, "-m", "venv", "--clear", venv], check=True)


def install(venv: Path, device: str, groups: Sequence[str], keep: bool) -> None:
    if not (keep and has_pip(venv)):
        make_environment(venv)
    Stamp(venv).begin(device)
    pip_install(venv, "pip", ["pip>=25.1"])
    pip_install(venv, f"torch for {device}", *torch_attempts(device))
    tools, project = project_arguments(device, groups)
    pip_install(venv, "build tools and " + ", ".join(groups) if groups else "build tools", tools)
    pip_install(venv, "the project and its C++ core, which takes minutes the first time", project)


def set_up(venv: Path, device: str, groups: Sequence[str]) -> None:
    key = fingerprint()
    if Stamp(venv).is_complete(device, ["project", *groups], key):
        return
    install_apt_packages(missing_apt_packages(groups))
    with exclusive():
        stamp = Stamp(venv)
        if stamp.is_complete(device, ["project", *groups], key):
            return
        groups = sorted({*groups, *stamp.parts} - {"project"})  # what was asked for before stays complete
        started = time.monotonic()
        install(venv, device, groups, keep=stamp.device in (device, None))
        Stamp(venv).finish(device, ["project", *groups], key)
    say(f"done in {time.monotonic() - started:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    if sys.version_info < MIN_PYTHON:
        print(f"set-up: python3 is {sys.version.split()[0]}; 3.10 or newer is needed", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--group", dest="groups", action="append", default=[], choices=["test", "lint", "server"])
    arguments = parser.parse_args(argv)
    venv = Path(os.environ.get("VENV_DIR") or ROOT / ".venv").resolve()
    try:
        set_up(venv, torch_device(), arguments.groups)
    except (SetupError, subprocess.CalledProcessError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
