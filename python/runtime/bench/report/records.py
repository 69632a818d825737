"""What files of rows hold, and how a row is named. A row may lack anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bench.rows import Row, read_rows
from runtime.errors import ConfigError

_LARGEST = 1e15
_STEP = {"seconds", "num_rows", "num_tokens"}  # of a step log's lines


@dataclass(frozen=True)
class Records:
    """One file: measurements, and steps of a step log."""

    path: Path
    rows: Sequence[Row]
    steps: Sequence[Row]


def read_records(files: Sequence[Path]) -> list[Records]:
    """
    Raises:
        ConfigError: a line is no JSON object, or no file has a row.
    """
    found = [_read(path) for path in files]
    if not any(one.rows or one.steps for one in found):
        names = ", ".join(str(path) for path in files)
        raise ConfigError(f"{names}: 0 rows: must have at least 1", hint="`runtime bench ... --append FILE` adds rows")
    return found


def _read(path: Path) -> Records:
    rows: list[Row] = []
    steps: list[Row] = []
    for row in read_rows(path):
        (steps if _STEP <= row.keys() and "engine" not in row else rows).append(row)
    return Records(path, rows, steps)


def number(row: Row, name: str) -> float | None:
    """A number of a size that can be drawn, or None."""
    value = row.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and -_LARGEST < value < _LARGEST else None  # type: ignore[operator, arg-type]


def positive(row: Row, name: str) -> float | None:
    """A number above 0, or None."""
    value = number(row, name)
    return value if value is not None and value > 0 else None


def text(row: Row, name: str, default: str = "") -> str:
    value = row.get(name)
    return default if value is None else shortened(value)


def device(row: Row) -> str:
    """With how many of them, if several hold the model."""
    count, name = number(row, "tp"), text(row, "device")
    return f"{count:g} x {name}" if count and count > 1 else name


def who(row: Row) -> str:
    """The engine, and where it ran."""
    parts = [text(row, "engine", "?")]
    if row.get("deterministic"):
        parts.append("deterministic")
    return ", ".join([" ".join(parts), *([device(row)] if device(row) else [])])


def model(row: Row) -> str:
    return text(row, "model", "no model")


def num_decoding(row: Row) -> int | None:
    """N of a scenario decode_bN with the field's context, which rows of peers have in the name alone."""
    found = re.fullmatch(r"decode_b(\d{1,9})", text(row, "scenario"))
    return int(found[1]) if found else None


def time_of(row: Row) -> float | None:
    """What a scenario took, for comparison within a scenario: less is better. Unit as the row's."""
    for name in ("tpot_ms", "s"):
        if (value := positive(row, name)) is not None:
            return value
    rate = positive(row, "tok_s")
    return 1 / rate if rate else None


def printable(words: Any) -> str:
    """On one line, without control characters and halves of characters, which JSON can hold."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(str(words).split()))


def shortened(words: Any, limit: int = 48) -> str:
    shown = printable(words)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
