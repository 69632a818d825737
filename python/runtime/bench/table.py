"""Rows as text: measurements of engines as lines of one table, anything else as names and values."""

from __future__ import annotations

from runtime.bench.rows import Row

# heading -> width; to the left if negative
_COLUMNS = {
    "engine": -12,
    "model": -14,
    "scenario": -16,
    "batch": 5,
    "in": 7,
    "out": 7,
    "time": 14,
    "tok/s": 10,
    "TTFT p50": 11,
    "limit": 10,
    "of limit": 8,
}
NOTHING = "-"
# what a row is about, the first that it has, with its unit
_TIMES = {"tpot_ms": "ms/step", "s": "s", "gap_p50_us": "us gap", "overhead_us": "us over"}


def heading() -> str:
    return _line({name: name for name in _COLUMNS})


def line(row: Row) -> str:
    """What one engine did in one scenario."""
    cells = {name: str(row.get(name, NOTHING)) for name in ("engine", "model", "scenario", "batch", "in", "out")}
    name = next((name for name in _TIMES if name in row), None)
    cells["time"] = NOTHING if name is None else f"{row[name]:.4g} {_TIMES[name]}"
    cells["tok/s"] = _number(row, "tok_s", "{:,.1f}")
    cells["TTFT p50"] = _number(row, "ttft_p50_ms", "{:,.1f} ms")
    cells["limit"] = _number(row, "limit", "{:.4g}")
    cells["of limit"] = _number(row, "pct_of_limit", "{:.0f} %")
    return _line(cells)


def listing(row: Row) -> str:
    """One line for each value."""
    width = max(map(len, row))
    return "\n".join(f"{name:{width}}  {value}" for name, value in row.items())


def _number(row: Row, name: str, pattern: str) -> str:
    return pattern.format(row[name]) if name in row else NOTHING


def _line(cells: dict[str, str]) -> str:
    padded = (cells[name].ljust(-width) if width < 0 else cells[name].rjust(width) for name, width in _COLUMNS.items())
    return "  ".join(padded).rstrip()
