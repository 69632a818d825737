"""Logging: one logger tree under "runtime", silent about anything below WARNING until told otherwise."""

from __future__ import annotations

import logging
import sys

from runtime.errors import ConfigError, did_you_mean, shorten

_LEVELS = ("debug", "info", "warning", "error", "critical")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.split(".")[0] == "runtime" else f"runtime.{name}")


def require_level(level: object) -> None:
    """Refuses what is not the name of a level, in either case.

    Raises:
        ConfigError
    """
    if not isinstance(level, str) or level.lower() not in _LEVELS:
        names = f"{', '.join(_LEVELS)}{did_you_mean(str(level), _LEVELS)}"
        raise ConfigError(f"log_level={shorten(level)}: must be one of {names}")


def set_level(level: str) -> None:
    """Shows messages of the package at `level` and above on stderr.

    Raises:
        ConfigError: as `require_level`.
    """
    require_level(level)
    root = logging.getLogger("runtime")
    root.setLevel(level.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
