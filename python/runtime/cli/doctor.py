"""Check this machine: each line is OK, WARN or FAIL, with the fix."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

OK, WARN, FAIL = "OK", "WARN", "FAIL"

_MIN_PYTHON = (3, 10)
_MIN_TORCH = (2, 11)
_MIN_TRITON = (3, 6)
_MIN_OPEN_FILES = 1024
_MIN_SHM_BYTES = 64 << 20
_MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty when there is nothing to do."""

    subject: str
    status: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    findings = [_safely(subject, check) for subject, check in CHECKS.items()]
    for finding in findings:
        print(json.dumps(asdict(finding)) if args.json else _line(finding))
    return 69 if any(finding.status == FAIL for finding in findings) else 0


def _line(finding: Finding) -> str:
    fix = f"; {finding.fix}" if finding.fix else ""
    return f"{finding.status:4} {finding.subject:12} {finding.detail}{fix}"


def _safely(subject: str, check: Callable[[], tuple[str, str, str]]) -> Finding:
    try:
        return Finding(subject, *check())
    except Exception as error:  # a check that fails is itself a finding
        return Finding(subject, FAIL, f"{type(error).__name__}: {error}")


def _python() -> tuple[str, str, str]:
    found = platform.python_version()
    if sys.version_info[:2] < _MIN_PYTHON:
        return FAIL, found, f"install Python {_text(_MIN_PYTHON)} or later"
    return OK, f"{found} at {sys.executable}", ""


def _core() -> tuple[str, str, str]:
    from runtime import _core

    return OK, f"runtime {_core.__version__}", ""


def _torch() -> tuple[str, str, str]:
    return _package("torch", _MIN_TORCH)


def _triton() -> tuple[str, str, str]:
    if not _has_gpu():
        return OK, "not needed without a GPU", ""
    return _package("triton", _MIN_TRITON)


def _driver() -> tuple[str, str, str]:
    if shutil.which("nvidia-smi") is None:
        return OK, "no NVIDIA driver: models run on the CPU", ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    if found.returncode:
        return FAIL, (found.stdout + found.stderr).strip().splitlines()[0], "reinstall the NVIDIA driver, or reboot"
    return OK, f"NVIDIA {found.stdout.splitlines()[0].strip()}", ""


def _gpus() -> tuple[str, str, str]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            return OK, "none", ""
        return FAIL, f"a driver is there, but torch {torch.__version__} sees no GPU", "install a CUDA build of torch"
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor})" for p in found)
    old = [p.name for p in found if (p.major, p.minor) < _MIN_CAPABILITY]
    if old:
        return FAIL, names, f"{old[0]} is too old: compute capability {_text(_MIN_CAPABILITY)} or later is needed"
    return OK, names, ""


def _shm() -> tuple[str, str, str]:
    if not os.path.isdir("/dev/shm"):
        return WARN, "/dev/shm is missing", "mount a tmpfs there"
    free = shutil.disk_usage("/dev/shm").free
    if free < _MIN_SHM_BYTES:
        return WARN, f"/dev/shm has {free >> 20} MiB free", "give a container --shm-size=1g"
    return OK, f"/dev/shm has {free >> 20} MiB free", ""


def _memory() -> tuple[str, str, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return OK, f"{total / 2**30:.1f} GiB, {os.cpu_count()} CPUs", ""


def _open_files() -> tuple[str, str, str]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_OPEN_FILES:
        return WARN, f"{soft} open files allowed", f"ulimit -n {min(max(hard, soft), _MIN_OPEN_FILES * 64)}"
    return OK, f"{soft} open files allowed", ""


def _locked_memory() -> tuple[str, str, str]:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return OK, "no limit on locked memory", ""
    status = WARN if _has_gpu() else OK
    return status, f"{soft >> 10} KiB may be locked", "ulimit -l unlimited" if status == WARN else ""


def _builtin_model() -> tuple[str, str, str]:
    from runtime.config import BUILTIN_MODEL

    if not (BUILTIN_MODEL / "config.json").is_file():
        return WARN, "the built-in model is missing", "reinstall the package"
    return OK, "the built-in model is there", ""


def _package(name: str, least: tuple[int, int]) -> tuple[str, str, str]:
    version = str(importlib.import_module(name).__version__)
    if _version(version) < least:
        return FAIL, version, f"pip install '{name}>={_text(least)}'"
    return OK, version, ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


CHECKS: dict[str, Callable[[], tuple[str, str, str]]] = {
    "python": _python,
    "runtime": _core,
    "torch": _torch,
    "triton": _triton,
    "driver": _driver,
    "gpus": _gpus,
    "memory": _memory,
    "shm": _shm,
    "open files": _open_files,
    "memlock": _locked_memory,
    "model": _builtin_model,
}
