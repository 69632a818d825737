"""Check this machine: each line is OK, WARN or FAIL, with the fix. Exit code 69 where something FAILs, else 0."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import platform
import sys
from dataclasses import asdict

from runtime.cli import doctor_device, doctor_system
from runtime.cli.finding import FAIL, OK, WARN, Check, Finding, Result, safely

_MIN_PYTHON = (3, 10)
_MIN_TORCH = (2, 11)
_MIN_TRITON = (3, 6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--port", type=int, help="one that `serve` must get; without it the default one may be held")


def run(args: argparse.Namespace) -> int:
    asked: dict[str, Check] = {"port": functools.partial(doctor_system.port, args.port)}
    findings = [safely(subject, asked.get(subject, check)) for subject, check in CHECKS.items()]
    for finding in findings:
        print(json.dumps(asdict(finding)) if args.json else _line(finding))
    return 69 if any(finding.status == FAIL for finding in findings) else 0


def _line(finding: Finding) -> str:
    fix = f"; {finding.fix}" if finding.fix else ""
    return f"{finding.status:4} {finding.subject:12} {finding.detail}{fix}"


def _python() -> Result:
    found = platform.python_version()
    if sys.version_info[:2] < _MIN_PYTHON:
        return FAIL, found, f"install Python {_text(_MIN_PYTHON)} or later"
    return OK, f"{found} at {sys.executable}", ""


def _core() -> Result:
    from runtime import _core

    return OK, f"runtime {_core.__version__}", ""


def _torch() -> Result:
    return _package("torch", _MIN_TORCH)


def _triton() -> Result:
    if not doctor_device.num_gpus():
        return OK, "not needed without a GPU", ""
    return _package("triton", _MIN_TRITON)


def _builtin_model() -> Result:
    from runtime.config import BUILTIN_MODEL

    if not (BUILTIN_MODEL / "config.json").is_file():
        return WARN, "the built-in model is missing", "reinstall the package"
    return OK, "the built-in model is there", ""


def _package(name: str, least: tuple[int, int]) -> Result:
    version = str(importlib.import_module(name).__version__)
    if _version(version) < least:
        return FAIL, version, f"pip install '{name}>={_text(least)}'"
    return OK, version, ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


CHECKS: dict[str, Check] = {
    "python": _python,
    "runtime": _core,
    "torch": _torch,
    "triton": _triton,
    "driver": doctor_device.driver,
    "gpus": doctor_device.gpus,
    "links": doctor_device.links,
    "nccl": doctor_device.nccl,
    "memory": doctor_system.memory,
    "shm": doctor_system.shm,
    "open files": doctor_system.open_files,
    "memlock": doctor_system.locked_memory,
    "processes": doctor_system.processes,
    "port": doctor_system.port,
    "kernels": doctor_system.kernel_cache,
    "model": _builtin_model,
}
