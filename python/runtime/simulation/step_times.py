"""Coefficients of the step-time model, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import _core
from runtime.errors import ConfigError, shorten

CALIBRATION_VERSION = 2
_COEFFICIENTS = ("decode_tile_s", "repeated_tile_share", "prefill_tile_s", "host_s", "row_s")


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """t = t0(bucket) + gemm(bucket) + attention(sum of tiles) + collectives(bucket) + host, in seconds.

    Args:
        buckets: (num_tokens, launch_s, gemm_s, collective_s), num_tokens rising.
        max_graph_rows: a step of at most so many decodes, and nothing else, takes the time of the next larger bucket.
        decode_tile_s, prefill_tile_s: of one tile of attention; `_core.StepFeatures` says what a tile is.
        repeated_tile_share: what a tile of decode attention takes that another row of the step reads as well, and that
            the device finds in its cache, as a share of `decode_tile_s`; 1: as long.
        host_s, row_s: of the host, for each step and for each row.
        source: where the figures come from, in words.
        kv_tokens: tokens that the KV pool of this model on this device holds; None: not known.
        kv_bytes_per_token: of that pool; None: not known.
    """

    buckets: tuple[tuple[int, float, float, float], ...]
    max_graph_rows: int = 0
    decode_tile_s: float = 0.0
    repeated_tile_share: float = 1.0
    prefill_tile_s: float = 0.0
    host_s: float = 0.0
    row_s: float = 0.0
    source: str = ""
    kv_tokens: int | None = None
    kv_bytes_per_token: float | None = None

    def model(self) -> _core.StepTimeModel:
        """The compiled form.

        Raises:
            ConfigError: a coefficient is negative, or the buckets do not rise.
        """
        coefficients = {name: getattr(self, name) for name in _COEFFICIENTS}
        return _core.StepTimeModel(buckets=self.buckets, max_graph_rows=self.max_graph_rows, **coefficients)

    def recompute_costs(self) -> dict[str, float]:
        """Arguments of `_core.SchedulerConfig`: seconds to compute a token's KV, and more for each token of context."""
        model = self.model()
        return {"recompute_token_s": model.recompute_token_s, "recompute_context_s": model.recompute_context_s}

    def save(self, path: str | Path) -> None:
        """Writes the file that `load_calibration` reads."""
        content = {"version": CALIBRATION_VERSION, **dataclasses.asdict(self)}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_calibration(path: str | Path) -> StepTimes:
    """Reads what `StepTimes.save` wrote.

    Raises:
        ConfigError: no such file, not a calibration file, or one of another version.
    """
    content = _read_object(Path(path))
    version = content.pop("version", None)
    if version != CALIBRATION_VERSION:
        found = "without a version" if version is None else f"of version {shorten(version)}"
        raise ConfigError(
            f"{path} is a calibration file {found}: this runtime reads version {CALIBRATION_VERSION}",
            hint="calibrate again with this version",
        )
    known = {field.name for field in dataclasses.fields(StepTimes)}
    if unknown := sorted(content.keys() - known):
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}: must be one of {', '.join(sorted(known))}")
    times = StepTimes(**{**content, "buckets": _buckets(path, content.get("buckets"))})
    _check_numbers(path, times)
    times.model()
    return times


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shorten(content)}: must be an object with a version")
    return content


def _buckets(path: str | Path, rows: object) -> tuple[tuple[int, float, float, float], ...]:
    if rows is None:
        raise ConfigError(f"{path}: no buckets: a calibration file must have them")
    if not isinstance(rows, list) or not all(isinstance(row, list) and _is_bucket(row) for row in rows):
        raise ConfigError(f"{path}: buckets={shorten(rows)}: must be lists of one integer and three numbers")
    return tuple((row[0], row[1], row[2], row[3]) for row in rows)


def _is_bucket(row: list[Any]) -> bool:
    return len(row) == 4 and isinstance(row[0], int) and 1 <= row[0] < 1 << 31 and all(map(_is_number, row))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_numbers(path: str | Path, times: StepTimes) -> None:
    for name in _COEFFICIENTS:
        if not _is_number(getattr(times, name)):
            raise ConfigError(f"{path}: {name}={shorten(getattr(times, name))}: must be a number")
    if not (times.kv_bytes_per_token is None or _is_number(times.kv_bytes_per_token)):
        raise ConfigError(f"{path}: kv_bytes_per_token={shorten(times.kv_bytes_per_token)}: must be a number")
    for name in ("max_graph_rows", "kv_tokens"):
        value = getattr(times, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31):
            raise ConfigError(f"{path}: {name}={shorten(value)}: must be an integer of at least 0")
