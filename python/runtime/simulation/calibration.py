"""Step times fitted to a recorded run: non-negative least squares over what plans did and how long it took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import _core
from runtime.errors import ConfigError, did_you_mean, shorten
from runtime.simulation.step_times import StepTimes

Array = npt.NDArray[np.float64]

FEATURES = ("num_rows", "num_decode_rows", "num_tokens", "num_decode_tiles", "num_prefill_tiles")
_MIN_STEPS = 8
_KNOTS = (16, 64, 128, 256, 512, 1024, 2048)  # tokens from which a step may grow faster
_MAX_TOKENS = 1 << 24


class StepLog:
    """Records steps as JSON lines, for `calibrate`.

    >>> log = StepLog("steps.jsonl")
    >>> log.add(plan, seconds)  # plan: the int32 words of a StepPlan
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("w", encoding="utf-8")

    def add(self, plan: npt.NDArray[np.int32], seconds: float) -> None:
        features = _core.step_features(plan)
        row = {name: getattr(features, name) for name in FEATURES}
        self._file.write(json.dumps({**row, "seconds": seconds}) + "\n")

    def close(self) -> None:
        self._file.close()


def calibrate(path: str | Path, *, max_graph_rows: int = 0) -> StepTimes:
    """Fits step times to a file that a `StepLog` wrote.

    Raises:
        ConfigError: a line that is no step, or too few of them.
    """
    return fit_step_times(_read_steps(Path(path)), max_graph_rows=max_graph_rows, source=Path(path).name)


def fit_step_times(steps: Iterable[Mapping[str, float]], *, max_graph_rows: int = 0, source: str = "") -> StepTimes:
    """Fits step times to steps, each with the numbers of `FEATURES` and its `seconds`.

    The time of a bucket is a constant and slopes that may grow at knots: convex in the tokens, as reading weights and
    then multiplying is. Relative errors count, so short steps weigh as much as long ones.
    """
    rows = np.array([[step[name] for name in (*FEATURES, "seconds")] for step in steps], dtype=np.float64)
    if len(rows) < _MIN_STEPS:
        raise ConfigError(f"{source or 'the run'} has {len(rows)} steps: at least {_MIN_STEPS} are needed")
    num_rows, _, tokens, decode_tiles, prefill_tiles, seconds = rows.T
    knots = [0.0, *(float(k) for k in _KNOTS if k < tokens.max())]
    hinges = [np.maximum(tokens - knot, 0.0) for knot in knots]
    columns = np.stack([np.ones_like(tokens), num_rows, decode_tiles, prefill_tiles, *hinges], axis=1)
    found = nnls(columns / seconds[:, None], np.ones_like(seconds))
    constant, row_s, decode_tile_s, prefill_tile_s, *slopes = (float(x) for x in found)

    def gemm_s(size: float) -> float:
        return sum(slope * max(size - knot, 0.0) for slope, knot in zip(slopes, knots))

    sizes = sorted({1, 2, *(int(k) for k in knots[1:]), max(int(tokens.max()), 2)})
    fitted = StepTimes(
        buckets=tuple((size, constant, gemm_s(size), 0.0) for size in sizes),
        decode_tile_s=decode_tile_s,
        prefill_tile_s=prefill_tile_s,
        row_s=row_s,
        max_graph_rows=max_graph_rows,
    )
    error = float(np.sqrt(np.mean((columns @ found / seconds - 1.0) ** 2)))
    note = f"{source or 'a recorded run'}: {len(rows)} steps, root mean square error {100 * error:.1f} %"
    return StepTimes(**{**vars(fitted), "source": note})


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


def _read_steps(path: Path) -> list[dict[str, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return [_step(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _step(where: str, line: str) -> dict[str, float]:
    try:
        step: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    known = (*FEATURES, "seconds")
    if not isinstance(step, dict):
        raise ConfigError(f"{where}: {shorten(step)}: must be an object")
    for name in step:
        if name not in known:
            raise ConfigError(f"{where}: unknown field {name!r}{did_you_mean(name, known)}")
    for name in known:
        value = step.get(name)
        low = 1e-9 if name == "seconds" else 0
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= _MAX_TOKENS:
            raise ConfigError(f"{where}: {name}={shorten(value)}: must be a number between {low} and {_MAX_TOKENS}")
    return step
