"""Runs a model: the thread that schedules, the device side, and what callers hold."""

from runtime.engine.engine import Engine, Knobs
from runtime.engine.request import RequestHandle

__all__ = ["Engine", "Knobs", "RequestHandle"]
