"""Every row of a file, in tables of rows that are alike. What all rows of a table share stands above it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.bench.report.records import number, printable, shortened
from runtime.bench.rows import Row

NOTHING = "–"
# in this order; what a row has besides follows, then where it was measured
_FIRST: tuple[str, ...] = ("engine", "model", "op", "case", "scenario", "scale", "tp", "deterministic", "batch")
_FIRST += ("bytes", "rate", "in", "out", "dtype")
_LAST = ("limit", "pct_of_limit", "device", "versions", "commit", "date")
_PLOTTED = ("itl_histogram",)  # no reading for people
_WHERE = ("device", "versions", "commit", "date")
_SHARED = ("engine", "model", *_WHERE)  # not in every row, if all are the same
_ALIKE = 0.6  # share of the names that two rows must have in common to stand in one table
_MAX_CELL = 64  # characters

# the name of a figure ends with its unit; the first that fits
_UNITS = {
    "tok_s": "tok/s",
    "req_s": "requests/s",
    "tb_s": "TB/s",
    "tflop_s": "TFLOP/s",
    "per_cpu_s": "1/s of CPU",
    "per_s": "1/s",
    "ms": "ms",
    "us": "µs",
    "pct": "%",
    "bytes": "B",
    "s": "s",
}
# names that are their unit alone, or do not say it
_NAMES = {
    "pct_of_limit": ("share of limit", "%"),
    "tok_s": ("throughput", "tok/s"),
    "req_s": ("throughput", "requests/s"),
    "tb_s": ("bandwidth", "TB/s"),
    "tflop_s": ("rate", "TFLOP/s"),
    "bytes": ("message", "B"),
    "s": ("time", "s"),
    "us": ("time", "µs"),
    "in": ("in", "tokens"),
    "out": ("out", "tokens"),
    "batch": ("batch", "requests"),
}


@dataclass(frozen=True)
class Table:
    """
    Args:
        shared: what every row has, by name.
        names: of the columns.
        rows: flattened, see `flat`; a name may be missing.
    """

    shared: Row
    names: Sequence[str]
    rows: Sequence[Row]


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """Rows with mostly the same names stand together."""
    groups: list[list[Row]] = []
    for row in map(flat, rows):
        group = next((one for one in groups if _are_alike(one[0], row)), None)
        if group is None:
            groups.append(group := [])
        group.append(row)
    return [_table(group) for group in groups]


def flat(row: Row) -> Row:
    """Members of objects as figures of their own, "ttft_ms.p50"; other than versions and settings, which are texts."""
    found: Row = {}
    for name, value in row.items():
        if name in _PLOTTED:
            continue
        if isinstance(value, dict) and name not in ("versions", "settings"):
            found.update({f"{name}.{part}": one for part, one in value.items()})
        else:
            found[name] = value
    return found


def html_of(table: Table) -> str:
    shared = ", ".join(
        f"{_shown_name(name)} <b>{_cell(name, value, {})[0]}</b>" for name, value in table.shared.items()
    )
    heads = "".join(f"<th>{_heading(name)}</th>" for name in table.names)
    lines = "\n".join(_line(table.names, row | table.shared) for row in table.rows)
    caption = f"<p class=shared>{shared}</p>" if shared else ""
    return f"{caption}<div class=scroll><table><thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>"


def _are_alike(a: Row, b: Row) -> bool:
    mine, other = a.keys() - set(_WHERE), b.keys() - set(_WHERE)
    return len(mine & other) >= _ALIKE * len(mine | other)


def _table(rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    middle = [name for name in names if name not in _FIRST + _LAST]
    ordered = [name for name in (*_FIRST, *middle, *_LAST) if name in names]
    shared = {
        name: rows[0][name] for name in ordered if name in (*_WHERE, "engine", "model") and _is_shared(name, rows)
    }
    return Table(shared, [name for name in ordered if name not in shared], rows)


def _is_shared(name: str, rows: Sequence[Row]) -> bool:
    return len(rows) > 1 and all(name in row and row[name] == rows[0][name] for row in rows)


def _heading(name: str) -> str:
    base, dot, part = name.partition(".")
    label, unit = _named(base)
    if base == "runs":  # runs.tpot_ms: each run's
        return f"{_heading(part)} of each run"
    unit_text = f" <span>{unit}</span>" if unit else ""
    return f"{_shown_name(label + (' ' + part if dot else ''))}{unit_text}"


def _named(name: str) -> tuple[str, str]:
    """(what, unit) of a figure."""
    if name in _NAMES:
        return _NAMES[name]
    ending = next((ending for ending in _UNITS if name.endswith("_" + ending)), None)
    return (name, "") if ending is None else (name.removesuffix("_" + ending), _UNITS[ending])


def _shown_name(name: str) -> str:
    return html.escape(shortened(name.replace("_", " ")))


def _line(names: Sequence[str], row: Row) -> str:
    cells = []
    for name in names:
        shown, is_number = _cell(name, row.get(name), row)
        cells.append(f"<td{' class=n' if is_number else ''}>{shown}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _cell(name: str, value: Any, row: Row) -> tuple[str, bool]:
    """(escaped text, whether it is a number)."""
    if value is None or value == "":
        return NOTHING, False
    if isinstance(value, bool):
        return ("yes" if value else "no"), False
    if isinstance(value, (int, float)):
        unit = (" ms" if "tpot_ms" in row else " tok/s") if name == "limit" else ""
        return html.escape(_number(value) + unit), True
    words = printable(_words(name, value))
    if len(words) <= _MAX_CELL:
        return html.escape(words), False
    return f'<span title="{html.escape(words[:2000])}">{html.escape(shortened(words, _MAX_CELL))}</span>', False


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    if isinstance(value, int) and abs(value) > 10**300:
        return "a number of more than 300 digits"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.5g}"


def _words(name: str, value: Any) -> str:
    if isinstance(value, dict):
        between = " " if name == "versions" else "="
        return ", ".join(f"{key}{between}{one}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_number(one) if isinstance(one, (int, float)) else str(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def step_summary(steps: Sequence[Row]) -> Iterator[str]:
    """A line about steps, which are plotted and not listed."""
    seconds = [one for one in (number(row, "seconds") for row in steps) if one is not None]
    if seconds:
        yield f"<p>{len(steps):,} steps in {sum(seconds):.4g} s; they are plotted above.</p>"
