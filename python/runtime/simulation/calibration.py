"""Step times fitted to a recorded run: non-negative least squares over what plans did and how long it took."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.errors import ConfigError, did_you_mean, shorten
from runtime.simulation.step_times import StepTimes

Array = npt.NDArray[np.float64]

FEATURES = (
    *("num_rows", "num_decode_rows", "num_tokens"),
    *("num_decode_tiles", "num_prefill_tiles", "num_repeated_tiles"),
)
_MIN_STEPS = 8
_TILE_SHARE_ERROR = 0.3  # how far attention may be from the rate of the products, relative, as one standard deviation
_NUM_REWEIGHTINGS = 3
_KNOTS = (16, 64, 128, 256, 512, 1024, 2048)  # tokens from which a step may grow faster
_MAX_TOKENS = 1 << 24


class StepLog:
    """Records steps as JSON lines, for `calibrate`.

    >>> log = StepLog("steps.jsonl")
    >>> log.add(plan, seconds)  # plan: the int32 words of a StepPlan

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = Path(path).open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None

    def add(self, plan: npt.NDArray[np.int32], seconds: float, *, scenario: str = "") -> None:
        self.add_features(_core.step_features(plan), seconds, scenario=scenario)

    def add_features(self, features: _core.StepFeatures, seconds: float, *, scenario: str = "") -> None:
        """A step whose features were taken while its plan was there; `scenario`: of which run it was, if known."""
        row: dict[str, Any] = {name: getattr(features, name) for name in FEATURES}
        row["seconds"] = seconds
        self._file.write(json.dumps(row | ({"scenario": scenario} if scenario else {})) + "\n")

    def close(self) -> None:
        self._file.close()


def calibrate(
    path: str | Path,
    *,
    scenarios: Collection[str] = (),
    max_graph_rows: int = 0,
    tile_tokens: float | None = None,
    repeated_tile_share: float = 1.0,
) -> StepTimes:
    """Fits step times to a file that a `StepLog` wrote.

    Args:
        scenarios: only the steps of these; none: all steps.
        max_graph_rows, tile_tokens, repeated_tile_share: see `fit_step_times`.

    Raises:
        ConfigError: a line that is no step, or too few of them.
    """
    steps, source = _read_steps(Path(path)), Path(path).name
    if scenarios:
        known = sorted({str(step.get("scenario", "")) for step in steps} - {""})
        for name in scenarios:
            if name not in known:
                raise ConfigError(f"{path} has no steps of {name!r}: it has {', '.join(known) or 'no scenario'}")
        steps = [step for step in steps if step.get("scenario") in scenarios]
        source = ", ".join(scenarios)
    return fit_step_times(
        steps,
        max_graph_rows=max_graph_rows,
        source=source,
        tile_tokens=tile_tokens,
        repeated_tile_share=repeated_tile_share,
    )


def fit_step_times(
    steps: Iterable[Mapping[str, Any]],
    *,
    max_graph_rows: int = 0,
    source: str = "",
    tile_tokens: float | None = None,
    repeated_tile_share: float = 1.0,
) -> StepTimes:
    """Fits step times to steps, each with the numbers of `FEATURES` and its `seconds`.

    The time of a bucket is a constant and slopes that may grow at knots: convex in the tokens, as reading weights and
    then multiplying is. Errors count relative to the fitted time, so short steps weigh as much as long ones, and the
    sum of the times is kept: relative to measured times, which scatter, the fit would follow the fast steps.

    Args:
        tile_tokens: tokens whose products are as many operations as a tile of prefill attention. Where prompts are much
            alike their attention cannot be told from their products; then it is taken to run at the products' rate.
        repeated_tile_share: the coefficient of that name, which is a device's rather than a run's; `runtime bench
            kernels` measures it.
    """
    rows = np.array([[step[name] for name in (*FEATURES, "seconds")] for step in steps], dtype=np.float64)
    if len(rows) < _MIN_STEPS:
        raise ConfigError(f"{source or 'the run'} has {len(rows)} steps: at least {_MIN_STEPS} are needed")
    num_rows, _, tokens, decode_tiles, prefill_tiles, repeated_tiles, seconds = rows.T
    decode_tiles = decode_tiles - (1.0 - repeated_tile_share) * repeated_tiles
    knots = [0.0, *(float(k) for k in _KNOTS if k < tokens.max())]
    hinges = [np.maximum(tokens - knot, 0.0) for knot in knots]
    columns = np.stack([prefill_tiles, np.ones_like(tokens), num_rows, decode_tiles, *hinges], axis=1)
    found = _fit(columns, seconds, None if tile_tokens is None else (tile_tokens, len(hinges)))
    prefill_tile_s, constant, row_s, decode_tile_s, *slopes = (float(x) for x in found)

    def gemm_s(size: float) -> float:
        return sum(slope * max(size - knot, 0.0) for slope, knot in zip(slopes, knots))

    sizes = sorted({1, 2, *(int(k) for k in knots[1:]), max(int(tokens.max()), 2)})
    fitted = StepTimes(
        buckets=tuple((size, constant, gemm_s(size), 0.0) for size in sizes),
        decode_tile_s=decode_tile_s,
        repeated_tile_share=repeated_tile_share,
        prefill_tile_s=prefill_tile_s,
        row_s=row_s,
        max_graph_rows=max_graph_rows,
    )
    error = float(np.sqrt(np.mean((seconds / (columns @ found) - 1.0) ** 2)))
    note = f"{source or 'a recorded run'}: {len(rows)} steps, root mean square error {100 * error:.1f} %"
    return StepTimes(**{**vars(fitted), "source": note})


def _fit(columns: Array, seconds: Array, prior: tuple[float, int] | None) -> Array:
    """Coefficients of the columns, of which the first one counts tiles of prefill attention.

    Args:
        columns: [m, n]; seconds: [m].
        prior: tokens as costly as a tile, and how many of the last columns grow with the tokens.
    """
    if prior is None:
        return _reweighted(columns, seconds)
    tile_tokens, num_slopes = prior
    # all attention counted as products first: how well that does says how much the tie may weigh
    without = _reweighted(columns[:, 1:], seconds)
    error = float(np.sqrt(np.mean((seconds / (columns[:, 1:] @ without) - 1.0) ** 2)))
    tile_s = tile_tokens * float(without[-num_slopes:].sum())
    if tile_s <= 0.0:
        return _reweighted(columns, seconds)
    tie = np.zeros(columns.shape[1])
    tie[0], tie[-num_slopes:] = 1.0, -tile_tokens
    return _reweighted(columns, seconds, tie * error / (_TILE_SHARE_ERROR * tile_s))


def _reweighted(columns: Array, seconds: Array, tie: Array | None = None) -> Array:
    """Non-negative least squares of errors relative to the fit; `tie` [n]: a combination that is to be 0 as well."""
    scale = seconds
    for _ in range(_NUM_REWEIGHTINGS):
        rows, wanted = columns / scale[:, None], seconds / scale
        if tie is not None:
            rows, wanted = np.vstack([rows, tie]), np.append(wanted, 0.0)
        found = nnls(rows, wanted)
        scale = np.maximum(columns @ found, 1e-3 * seconds)
    return found


def nnls(a: Array, b: Array) -> Array:
    """x >= 0 that minimises |a x - b|.

    The active set method of C. L. Lawson and R. J. Hanson, "Solving Least Squares Problems", 1974, chapter 23.

    Args:
        a: [m, n]; b: [m].
    """
    scale = np.linalg.norm(a, axis=0)
    scaled = a / np.where(scale > 0, scale, 1.0)
    x = np.zeros(a.shape[1])
    passive = np.zeros(a.shape[1], dtype=bool)
    tolerance = 1e-12 * float(np.linalg.norm(b))
    for _ in range(3 * a.shape[1]):
        gradient = scaled.T @ (b - scaled @ x)
        gradient[passive | (scale == 0)] = -math.inf
        if gradient.max() <= tolerance:
            break
        passive[int(gradient.argmax())] = True
        x = _inner_loop(scaled, b, x, passive)
    return np.asarray(x / np.where(scale > 0, scale, 1.0))


def _inner_loop(a: Array, b: Array, x: Array, passive: npt.NDArray[np.bool_]) -> Array:
    """Solves over the passive set, and leaves out whoever would turn negative."""
    while True:
        solved = np.zeros_like(x)
        solved[passive] = np.linalg.lstsq(a[:, passive], b, rcond=None)[0]
        negative = passive & (solved <= 0)
        if not negative.any():
            return solved
        steps = x[negative] / (x[negative] - solved[negative])
        x = x + float(steps.min()) * (solved - x)
        passive &= x > 1e-15
        x[~passive] = 0.0


def _read_steps(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return [_step(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _step(where: str, line: str) -> dict[str, Any]:
    try:
        step: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    known = (*FEATURES, "seconds")
    if not isinstance(step, dict):
        raise ConfigError(f"{where}: {shorten(step)}: must be an object")
    for name in step:
        if name not in (*known, "scenario"):
            raise ConfigError(f"{where}: unknown field {name!r}{did_you_mean(name, known)}")
    for name in known:
        value = step.get(name)
        low = 1e-9 if name == "seconds" else 0
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= _MAX_TOKENS:
            raise ConfigError(f"{where}: {name}={shorten(value)}: must be a number between {low} and {_MAX_TOKENS}")
    return step
