"""One measurement is one JSON object; docs/benchmarks/ keeps them as lines."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "triton")


def environment(device: str) -> dict[str, Any]:
    """Where and with what something was measured."""
    from runtime.cli.version import versions

    known = versions()
    return {
        "device": device_name(device),
        "versions": {name: known[name] for name in ("runtime", "python", *_PACKAGES)},
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


def append_row(row: dict[str, Any], path: Path) -> None:
    """Adds a line to a .jsonl file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
