"""Traces: requests in a CSV or JSON lines file.

Fields: arrival_s, prompt_len, output_len; and where known prefix_id, prefix_len, max_tokens, tenant, priority.
Prompts with equal prefix_id share their first prefix_len tokens.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.errors import ConfigError, did_you_mean, shorten

REQUIRED = ("arrival_s", "prompt_len", "output_len")
OPTIONAL = ("prefix_id", "prefix_len", "max_tokens", "tenant", "priority")
_MAX_SECONDS = 1e9
_NANOSECONDS = 1e9
# inclusive bounds of the integer fields
_BOUNDS = {
    "prompt_len": (1, 1 << 24),
    "output_len": (1, 1 << 24),
    "prefix_id": (-1, (1 << 62) - 1),
    "prefix_len": (0, 1 << 24),
    "max_tokens": (0, 1 << 24),
    "priority": (-(1 << 31), (1 << 31) - 1),
}


def read_trace(path: str | Path, *, max_len: int | None = None) -> npt.NDArray[Any]:
    """The requests of a trace, by arrival; dtype `_core.simulated_request`.

    Args:
        path: .csv with a header line, anything else is JSON lines.
        max_len: tokens that a prompt and its output may have together.

    Raises:
        ConfigError: with the line's number, its value and the limit.
    """
    path = Path(path)
    tenants: dict[str, int] = {}
    requests: list[tuple[int, ...]] = []
    last_s = 0.0
    try:
        for number, row in _rows(path):
            where = f"{path}, line {number}"
            _check_fields(where, row)
            request = {name: _integer(where, name, row) for name in _BOUNDS}
            arrival_s = _arrival(where, row["arrival_s"], last_s)
            last_s = arrival_s
            _check_lengths(where, request, max_len)
            tenant = tenants.setdefault(str(row.get("tenant") or ""), len(tenants))
            requests.append(_record(request, arrival_s, tenant))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not requests:
        raise ConfigError(f"{path} has 0 requests: must have at least 1")
    return np.array(requests, dtype=_core.simulated_request)


def _record(request: dict[str, int], arrival_s: float, tenant: int) -> tuple[int, ...]:
    names = _core.simulated_request.names or ()
    values = {**request, "arrival_ns": round(arrival_s * _NANOSECONDS), "tenant": tenant}
    return tuple(values[name] for name in names)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from _csv_rows(path, csv.reader(file))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_row(f"{path}, line {number}", line)


def _csv_rows(path: Path, lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    header = [name.strip() for name in next(lines, [])]
    _check_fields(f"{path}, line 1", dict.fromkeys(header, ""))
    if twice := [name for name in header if header.count(name) > 1]:
        raise ConfigError(f"{path}, line 1: {twice[0]} stands there {header.count(twice[0])} times: must stand once")
    for values in lines:
        if len(values) != len(header):
            raise ConfigError(
                f"{path}, line {lines.line_num}: {len(values)} values: must be {len(header)}, as in the header"
            )
        yield lines.line_num, {name: value.strip() for name, value in zip(header, values)}


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error.msg} at character {error.pos + 1}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {shorten(row)}: must be an object with {', '.join(REQUIRED)}")
    return row


def _check_fields(where: str, row: dict[str, Any]) -> None:
    known = (*REQUIRED, *OPTIONAL)
    for name in row:
        if name not in known:
            raise ConfigError(
                f"{where}: unknown field {name!r}{did_you_mean(name, known)}: must be one of {', '.join(known)}"
            )
    for name in REQUIRED:
        if name not in row:
            raise ConfigError(f"{where}: no {name}: every request must have {', '.join(REQUIRED)}")


def _integer(where: str, name: str, row: dict[str, Any]) -> int:
    low, high = _BOUNDS[name]
    value = row.get(name)
    if value in (None, "") and name in OPTIONAL:
        return -1 if name == "prefix_id" else 0
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise ConfigError(f"{where}: {name}={shorten(value)}: must be an integer between {low} and {high}")
    return number


def _arrival(where: str, value: object, last_s: float) -> float:
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    except ValueError:
        seconds = None
    if seconds is None or not 0 <= seconds <= _MAX_SECONDS:
        raise ConfigError(f"{where}: arrival_s={shorten(value)}: must be between 0 and {_MAX_SECONDS:.0f} seconds")
    if seconds < last_s:
        raise ConfigError(f"{where}: arrival_s={seconds:g}: must be at least {last_s:g}, that of the request before")
    return seconds


def _check_lengths(where: str, request: dict[str, int], max_len: int | None) -> None:
    prompt_len, output_len = request["prompt_len"], request["output_len"]
    if request["prefix_len"] > prompt_len:
        raise ConfigError(f"{where}: prefix_len={request['prefix_len']}: must be at most prompt_len={prompt_len}")
    if request["max_tokens"] and request["max_tokens"] < output_len:
        raise ConfigError(f"{where}: max_tokens={request['max_tokens']}: must be at least output_len={output_len}")
    if max_len is not None and prompt_len + output_len > max_len:
        raise ConfigError(
            f"{where}: prompt_len + output_len={prompt_len + output_len}: must be at most {max_len} tokens, "
            "what the model and the KV pool hold",
            hint="--max-model-len and --kv-tokens raise it",
        )
