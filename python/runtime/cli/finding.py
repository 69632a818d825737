"""What a check of `runtime doctor` finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OK, WARN, FAIL = "OK", "WARN", "FAIL"

Result = tuple[str, str, str]  # status, detail, fix
Check = Callable[[], Result]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty when there is nothing to do."""

    subject: str
    status: str
    detail: str
    fix: str = ""


def safely(subject: str, check: Check) -> Finding:
    """What a check finds; one that cannot be made has failed."""
    try:
        return Finding(subject, *check())
    except Exception as error:  # a check that fails is itself a finding
        return Finding(subject, FAIL, f"{type(error).__name__}: {error}")
