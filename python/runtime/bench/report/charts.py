"""Which plots rows have in them; how they look is `plots.py`'s."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from runtime.bench.distributions import BINS_A_DECADE
from runtime.bench.report.records import (
    Records,
    device,
    model,
    num_decoding,
    number,
    positive,
    shortened,
    text,
    time_of,
    who,
)
from runtime.bench.rows import Row

K = TypeVar("K")
Key = tuple[str, tuple[str, ...]]  # engine, and what it did

_MAX_STEPS = 1500  # points of a timeline
_BIN_RATIO: float = 10 ** (1 / BINS_A_DECADE)  # of the bounds of a histogram's bin


@dataclass(frozen=True)
class Series:
    """Points, with a note at each that has one; of bars `y` alone counts, and None leaves one out."""

    label: str
    x: Sequence[float] = ()
    y: Sequence[float | None] = ()
    notes: Sequence[str] = ()
    notes_below: bool = False  # so that those of two engines do not cover each other


@dataclass(frozen=True)
class Chart:
    """
    Args:
        kind: "lines", "points", "steps" (of histograms: x has one bound more than y) or "bars".
        categories: of bars, from top to bottom.
        log: the axes that are logarithmic, "x" or "xy".
        mark: a value that is marked by a line, such as a limit.
        note: what a reader should know.
    """

    kind: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    categories: Sequence[str] = ()
    log: str = ""
    mark: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """For a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:80]


def charts_of(records: Sequence[Records]) -> list[Chart]:
    rows = [row for one in records for row in one.rows]
    found: list[Chart] = []
    for make in (_latency_throughput, _limits, _engines, _gaps, _collectives, _kernels, _predictions):
        found += make(rows)
    for one in records:
        found += _timelines(one)
    return found


def _groups(rows: Sequence[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """In order of appearance."""
    found: dict[K, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _latency_throughput(rows: Sequence[Row]) -> Iterator[Chart]:
    """One curve an engine: over batches of decodes, or over rates."""
    for name, group in _groups(rows, model).items():
        usual = [row for row in group if not row.get("deterministic")]
        series: list[Series] = []
        sides: dict[str, bool] = {}  # of engines
        for label, mine in _groups(usual, who).items():
            for curve in _curve(label, mine):
                below = sides.setdefault(text(mine[0], "engine"), len(sides) % 2 == 1)
                series.append(replace(curve, notes_below=below))
        if series:
            yield Chart(
                "lines",
                f"Latency against throughput: {name}",
                "output tokens a second",
                "ms for each token",
                series,
                log="xy",
                note="bN: N requests decode together. N/s: open loop, TPOT at the median. Low and right is good.",
            )


def _curve(label: str, rows: Sequence[Row]) -> Iterator[Series]:
    points = []
    for row in rows:
        tpot, batch = positive(row, "tpot_ms"), num_decoding(row)
        if tpot and batch and "scale" not in row:
            points.append((1e3 * batch / tpot, tpot, f"b{batch}"))
    if points:
        yield _sorted_series(label, points)
    for scenario, mine in _groups(
        [row for row in rows if number(row, "rate")], lambda row: text(row, "scenario")
    ).items():
        rates = [(positive(row, "tok_s"), positive(row, "tpot_p50_ms"), f"{number(row, 'rate'):g}/s") for row in mine]
        found = [(x, y, note) for x, y, note in rates if x and y]
        if found:
            yield _sorted_series(f"{label}, {scenario}", found)


def _sorted_series(label: str, points: Sequence[tuple[float, float, str]]) -> Series:
    latest = {note: (x, y, note) for x, y, note in points}  # measured again
    x, y, notes = zip(*sorted(latest.values()))
    return Series(label, x, y, notes)


def _series(label: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(label, [x for x, _ in points], [y for _, y in points])


def _scenario(row: Row) -> str:
    scale = f" (1/{text(row, 'scale')})" if "scale" in row else ""
    return text(row, "scenario", text(row, "op", "?")) + scale


def _bars(rows: Sequence[Row], category: Callable[[Row], str], value: Callable[[Row], float | None]) -> list[Series]:
    """One series for each engine, over the categories of all rows; the last row of two counts."""
    categories = list(_groups(rows, category))
    found = []
    for label, mine in _groups(rows, who).items():
        values = {category(row): value(row) for row in mine}
        found.append(Series(label, y=[values.get(name) for name in categories]))
    return found


def _limits(rows: Sequence[Row]) -> Iterator[Chart]:
    limited = [row for row in rows if number(row, "pct_of_limit") is not None]
    for name, group in _groups(limited, model).items():
        yield Chart(
            "bars",
            f"Share of the device's limit: {name}",
            "% of limit",
            "",
            _bars(group, _scenario, lambda row: number(row, "pct_of_limit")),
            categories=list(_groups(group, _scenario)),
            mark=100.0,
            note="The limit: weights and KV cache read once, or the products computed, whichever takes longer.",
        )


def _engines(rows: Sequence[Row]) -> Iterator[Chart]:
    """Engines that did the same on the same device; times against those of the first of them."""
    timed = [row for row in rows if time_of(row) is not None and "scenario" in row and not row.get("deterministic")]
    for (name, place), group in _groups(timed, lambda row: (model(row), device(row))).items():
        latest = {(text(row, "engine", "?"), _alike(row)): row for row in group}
        engines = list(_groups(group, lambda row: text(row, "engine", "?")))
        shared = [key for key in _groups(group, _alike) if sum((e, key) in latest for e in engines) > 1]
        if not shared:
            continue
        first = "runtime" if "runtime" in engines else engines[0]
        series = [Series(e, y=[_ratio(latest, e, first, key) for key in shared]) for e in engines]
        yield Chart(
            "bars",
            f"Engines: {name} on {place}",
            f"time, {first} = 1",
            "",
            [one for one in series if any(value is not None for value in one.y)],
            categories=[_scenario(latest[next(e for e in engines if (e, key) in latest), key]) for key in shared],
            mark=1.0,
            note="Rows of one device alone. Less is better.",
        )


def _alike(row: Row) -> tuple[str, ...]:
    """What two engines must have in common to be compared; rows of peers may lack sizes that the scenario says."""
    return tuple(text(row, name) for name in ("scenario", "scale", "dtype", "rate"))


def _ratio(
    latest: dict[tuple[str, tuple[str, ...]], Row], engine: str, first: str, key: tuple[str, ...]
) -> float | None:
    mine, base = latest.get((engine, key)), latest.get((first, key))
    if mine is None or base is None:
        return None
    if first == "runtime" and (paired := positive(mine, "time_ratio")):
        return paired  # the two took turns
    for name, better in (("tpot_ms", -1), ("s", -1), ("tok_s", 1)):
        x, y = positive(mine, name), positive(base, name)
        if x and y:
            return x / y if better < 0 else y / x
    return None


def _gaps(rows: Sequence[Row]) -> Iterator[Chart]:
    """Histograms of the gaps between tokens, a chart for each scenario."""
    with_gaps = [row for row in rows if _bins(row)]
    for (name, scenario), group in _groups(with_gaps, lambda row: (model(row), _scenario(row))).items():
        series = []
        for label, mine in _groups(group, who).items():
            bounds, counts = _steps(_bins(mine[-1]))
            total = sum(counts)
            series.append(Series(label, bounds, [100 * count / total for count in counts]))
        yield Chart(
            "steps",
            f"Gaps between tokens: {name}, {scenario}",
            "ms between two tokens of a request (ITL)",
            "% of the gaps",
            series,
            log="x",
        )


def _bins(row: Row) -> list[tuple[float, float]]:
    """(upper bound in ms, count) of each bin, ascending; empty: there is no histogram."""
    bins = row.get("itl_histogram")
    if not isinstance(bins, list):
        return []
    found = []
    for one in bins:
        if not isinstance(one, list) or len(one) != 2:
            return []
        upper, count = number({"x": one[0]}, "x"), number({"x": one[1]}, "x")
        if upper is None or count is None or upper <= 0 or count < 0:
            return []
        found.append((upper, count))
    return sorted(found) if any(count for _, count in found) else []


def _steps(bins: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Bounds, and the counts between them; bins that are left out are empty."""
    bounds, counts = [bins[0][0] / _BIN_RATIO], []
    for upper, count in bins:
        lower = upper / _BIN_RATIO
        if lower > bounds[-1] * 1.01:
            bounds.append(lower)
            counts.append(0.0)
        bounds.append(upper)
        counts.append(count)
    return bounds, counts


def _collectives(rows: Sequence[Row]) -> Iterator[Chart]:
    """Sums over ranks by size, one line for each way."""
    sized = [row for row in rows if positive(row, "bytes") and text(row, "scenario") == "allreduce"]
    for place, group in _groups(sized, device).items():
        series = []
        for way in dict.fromkeys(name for row in group for name in row if name.endswith("_us")):
            points = sorted((float(row["bytes"]) / 1024, float(row[way])) for row in group if positive(row, way))
            if points:
                series.append(_series(shortened(way.removesuffix("_us").replace("_", " ")), points))
        if series:
            yield Chart("lines", f"Sums over ranks: {place}", "KiB", "microseconds", series, log="xy")


def _kernels(rows: Sequence[Row]) -> Iterator[Chart]:
    """Each case as a point: the library's time across, how many times as fast the kernel is up."""
    pairs = [row for row in rows if "op" in row and positive(row, "us") and positive(row, "library_us")]
    for place, group in _groups(pairs, lambda row: text(row, "device")).items():
        series = []
        for op, mine in _groups(group, lambda row: text(row, "op")).items():
            times = [float(row["library_us"]) for row in mine]
            series.append(Series(op, times, [row["library_us"] / row["us"] for row in mine]))
        title = f"Kernels beside the library: {place}"
        labels = ("library, microseconds", "times as fast as the library")
        yield Chart("points", title, *labels, series, log="x", mark=1.0, note="A point is a case; high is good.")


def _predictions(rows: Sequence[Row]) -> Iterator[Chart]:
    """The simulator's error, in seconds and in TTFT."""
    names = {"error_pct": "time", "ttft_error_pct": "TTFT p99"}
    found = [row for row in rows if any(number(row, name) is not None for name in names)]
    for name, group in _groups(found, model).items():
        series = [Series(label, y=[number(row, key) for row in group]) for key, label in names.items()]
        title, categories = f"Predictions of the simulator: {name}", [_scenario(row) for row in group]
        yield Chart("bars", title, "% more than measured", "", series, categories=categories, mark=0.0)


def _timelines(records: Records) -> Iterator[Chart]:
    """What each step of a step log took, one after another."""
    for scenario, steps in _groups(records.steps, lambda row: text(row, "scenario")).items():
        timed = [
            (number(row, "seconds"), bool(number(row, "num_decode_rows") == number(row, "num_rows"))) for row in steps
        ]
        longest, every = _thinned([(seconds, pure) for seconds, pure in timed if seconds is not None])
        series = []
        for label, is_decode in (("decodes alone", True), ("with prompts", False)):
            points = [(at, 1e3 * seconds) for at, seconds, pure in longest if pure is is_decode]
            if points:
                series.append(_series(label, points))
        if series:
            note = f"Each point is the longest of {every} steps." if every > 1 else "Each point is a step."
            title = f"Steps: {shortened(records.path.name)} {scenario}".strip()
            yield Chart("points", title, "seconds of steps so far", "ms a step", series, note=note)


def _thinned(steps: Sequence[tuple[float, bool]]) -> tuple[list[tuple[float, float, bool]], int]:
    """((start, seconds, decodes alone) of the longest of every n steps, n), n being what leaves `_MAX_STEPS`."""
    starts, now = [], 0.0
    for seconds, _ in steps:
        starts.append(now)
        now += seconds
    every = -(-len(steps) // _MAX_STEPS) or 1
    found = []
    for i in range(0, len(steps), every):
        at = max(range(i, min(i + every, len(steps))), key=lambda j: steps[j][0])
        found.append((starts[at], *steps[at]))
    return found, every
