"""Logging: one logger tree under "runtime", silent about anything below WARNING until told otherwise."""

from __future__ import annotations

import logging
import sys

_LEVELS = ("debug", "info", "warning", "error", "critical")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.split(".")[0] == "runtime" else f"runtime.{name}")


def set_level(level: str) -> None:
    """Shows messages of the package at `level` and above on stderr."""
    from runtime.errors import ConfigError, did_you_mean

    if level.lower() not in _LEVELS:
        raise ConfigError(f"log_level={level!r}: must be one of {', '.join(_LEVELS)}{did_you_mean(level, _LEVELS)}")
    root = logging.getLogger("runtime")
    root.setLevel(level.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
