"""Print the versions of the runtime and of what it runs on."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "tokenizers", "jinja2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    for name, version in versions().items():
        print(name, version)
    return 0


def versions() -> dict[str, str]:
    """Version by package, read from metadata: importing torch takes seconds."""
    from runtime import __version__

    found = {"runtime": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
