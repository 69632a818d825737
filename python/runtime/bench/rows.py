"""Rows: one measurement is one JSON object, a line of a .jsonl file; docs/benchmarks/ keeps them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError

Row = dict[str, Any]

_PACKAGES = ("torch", "triton")


def environment(device: str, versions: Mapping[str, str] | None = None) -> Row:
    """Where and with what something was measured.

    Args:
        device: "cpu" or "cuda".
        versions: of an engine that is not the runtime's; they replace its own.
    """
    from runtime.cli.version import versions as installed

    known = installed()
    return {
        "device": device_name(device),
        "versions": {**(versions or {"runtime": known["runtime"]}), **{k: known[k] for k in ("python", *_PACKAGES)}},
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def device_name(device: str) -> str:
    """Of "cpu" or "cuda"."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The revision of the source tree, with "+" where files differ from it; None outside of one.

    $SOURCE_COMMIT says it where a copy of the tree was sent without its history.
    """
    if os.environ.get("SOURCE_COMMIT"):
        return os.environ["SOURCE_COMMIT"]
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def append_row(row: Row, path: Path) -> None:
    """Adds a line to a .jsonl file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a .jsonl file; empty lines are none.

    Raises:
        ConfigError: with the number of a line that is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number}: must be an object")
        yield row


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
