"""Runs a model: the thread that schedules, the device side, and what callers hold."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.engine.engine import Engine
    from runtime.engine.knobs import Knobs
    from runtime.engine.pinned_prefix import PinnedPrefix
    from runtime.engine.request import RequestHandle, Subscription
    from runtime.engine.submission import SubmitOptions

__all__ = ["Engine", "Knobs", "PinnedPrefix", "RequestHandle", "SubmitOptions", "Subscription"]

_HOMES = {
    "Engine": "engine",
    "Knobs": "knobs",
    "PinnedPrefix": "pinned_prefix",
    "RequestHandle": "request",
    "SubmitOptions": "submission",
    "Subscription": "request",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: a server's own process runs no engine and need not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
