"""Runs a model: the thread that schedules, the device side, and what callers hold."""

from runtime.engine.engine import Engine
from runtime.engine.knobs import Knobs
from runtime.engine.pinned_prefix import PinnedPrefix
from runtime.engine.request import RequestHandle
from runtime.engine.submission import SubmitOptions

__all__ = ["Engine", "Knobs", "PinnedPrefix", "RequestHandle", "SubmitOptions"]
