"""Replays an event log: the recorded events again, the decisions compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from runtime import _core


@dataclass(frozen=True)
class Replay:
    """What a replay showed.

    Args:
        figures: one JSON object; steps, requests and seconds are those replayed.
        problem: one sentence where a decision differs or the log is damaged; None: the log is whole and every
            decision the same.
    """

    figures: dict[str, Any]
    problem: str | None


def replay(path: str | os.PathLike[str]) -> Replay:
    """Feeds the events of a log to a new scheduler, up to the first decision that differs.

    Logs are written by `LLM(event_log=...)`, `Settings(event_log=...)` and `Scheduler.record`.

    Raises:
        ConfigError: the file cannot be read, is no event log, or is one of another version.
    """
    report = _core.replay(os.fspath(path))
    figures = {
        "steps": report.num_steps,
        "requests": report.num_requests,
        "seconds": report.seconds,
        "recorded_by": report.runtime_version,
        "replayed_by": _core.__version__,
        "same": report.difference is None and not report.damage,
    }
    return Replay(figures, _problem(os.fspath(path), report))


def _problem(path: str, report: _core.ReplayReport) -> str | None:
    if report.difference is None:
        return report.damage or None
    expected, found = (_decision(code) for code in (report.difference.expected, report.difference.found))
    return f"{path}: step {report.difference.step} differs: the log has {expected}, the replay {found}"


def _decision(code: int | None) -> str:
    return "no step" if code is None else f"decision {code:016x}"
