"""Charts through matplotlib: SVG whose colours follow the page's, and PNG."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.bench.report.charts import Chart, Series
from runtime.errors import ConfigError

# variables of the page's style: of its text, of lines, of series
INK, LINE = "ink", "line"
NUM_COLORS = 8
LIGHT = {
    INK: "#1f2328",
    LINE: "#d0d7de",
    **dict(
        zip(
            (f"s{i}" for i in range(NUM_COLORS)),
            ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989", "#57606a", "#0a7d8c"),
        )
    ),
}
# in a drawing each variable is a colour that nothing else has
_DRAWN = {name: f"#0a0b{i:02x}" for i, name in enumerate(LIGHT)}
_MARKERS = "osD^vPX*"
_BAR_INCHES = 0.2
_WIDTH_INCHES = 6.4
_STYLE: Any = {  # any: the keys that matplotlib knows are a type of its newest versions alone
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # rows may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Plotter:
    """
    Raises:
        ConfigError: matplotlib is not installed.
    """

    def __init__(self) -> None:
        try:
            import matplotlib
        except ImportError:
            raise ConfigError(
                "a report needs matplotlib, which is not installed", hint="pip install 'runtime-llm[bench]'"
            ) from None
        self._matplotlib = matplotlib

    def svg(self, chart: Chart, prefix: str) -> str:
        """An <svg> element; its colours are variables of the page.

        Args:
            prefix: of its ids, which must be unique in a page.
        """
        file = io.StringIO()
        with self._style({**_colors(_DRAWN), "svg.hashsalt": prefix}):
            self._figure(chart, _DRAWN).savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return _for_page(file.getvalue(), prefix)

    def write_png(self, chart: Chart, path: Path) -> None:
        with self._style({**_colors(LIGHT), "figure.facecolor": "white"}):
            figure = self._figure(chart, LIGHT)
            figure.suptitle(chart.title, color=LIGHT[INK])
            figure.savefig(path, dpi=150)

    @contextlib.contextmanager
    def _style(self, settings: Any) -> Iterator[None]:
        with self._matplotlib.rc_context({**_STYLE, **settings}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names may be in any script
            yield

    def _figure(self, chart: Chart, colors: dict[str, str]) -> Any:
        from matplotlib.figure import Figure

        height = 3.6
        if chart.kind == "bars":
            height = 1.3 + _BAR_INCHES * len(chart.categories) * (len(chart.series) + 0.6) + 0.2 * len(chart.series)
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        draw = _draw_bars if chart.kind == "bars" else _draw_points
        draw(axes, chart, colors)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        if len(chart.series) > 1 or chart.series[0].label:
            figure.legend(loc="outside lower left", ncols=2 if len(chart.series) > 2 else 1)
        return figure


def _colors(names: dict[str, str]) -> dict[str, str]:
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), names[INK])
    return {**ink, "axes.edgecolor": names[LINE], "grid.color": names[LINE]}


def _color(colors: dict[str, str], i: int) -> str:
    return colors[f"s{i % NUM_COLORS}"]


def _draw_bars(axes: Any, chart: Chart, colors: dict[str, str]) -> None:
    """Groups from top to bottom, a bar for each series, its value at its end."""
    count = len(chart.series)
    room = 1 / (count + 0.6)  # of a bar, in groups
    for i, series in enumerate(chart.series):
        known = [(k, value) for k, value in enumerate(series.y) if value is not None]
        places = [k + (i + 0.5 - count / 2) * room for k, _ in known]
        widths = [value for _, value in known]
        bars = axes.barh(places, widths, 0.9 * room, label=_label(series), color=_color(colors, i))
        axes.bar_label(bars, [f"{value:.3g}" for value in widths], padding=3, fontsize=8)
    axes.set_yticks(range(len(chart.categories)), list(chart.categories))
    axes.set_ylim(len(chart.categories) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    if chart.mark is not None:
        axes.axvline(chart.mark, color=colors[INK], linewidth=1, linestyle="--", zorder=0.5)  # behind the values


def _draw_points(axes: Any, chart: Chart, colors: dict[str, str]) -> None:
    for name in chart.log:
        axes.set(**{f"{name}scale": "log"})
    for i, series in enumerate(chart.series):
        look = {"color": _color(colors, i), "label": _label(series)}
        if chart.kind == "steps":
            axes.stairs(series.y, series.x, fill=True, alpha=0.25, color=look["color"])
            axes.stairs(series.y, series.x, linewidth=1.5, **look)
            continue
        line = "-" if chart.kind == "lines" else "none"
        axes.plot(series.x, series.y, linestyle=line, marker=_MARKERS[i % len(_MARKERS)], markersize=4, **look)
        _annotate(axes, series, look["color"])
    for name in chart.log:
        _plain_ticks(getattr(axes, f"{name}axis"))
    if chart.mark is not None:
        axes.axhline(chart.mark, color=colors[INK], linewidth=1, linestyle="--")


def _annotate(axes: Any, series: Series, color: str) -> None:
    """Notes beside their points, above or below the line."""
    place = {"ha": "left", "va": "top"} if series.notes_below else {"ha": "right", "va": "bottom"}
    offset = (3, -3) if series.notes_below else (-3, 3)
    for x, y, note in zip(series.x, series.y, series.notes):
        axes.annotate(note, (x, y), offset, textcoords="offset points", fontsize=8, color=color, **place)


def _plain_ticks(axis: Any) -> None:
    """10 and 100, not powers; between them 2 and 5 where there is room."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 500 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter("")


def _label(series: Series) -> str:
    """matplotlib leaves labels with a leading underscore out of legends."""
    return series.label if not series.label.startswith("_") else f" {series.label}"


def _for_page(document: str, prefix: str) -> str:
    """The element alone, without what describes the file, with ids of its own and the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for name, drawn in _DRAWN.items():
        svg = re.sub(rf"(fill|stroke): {drawn}\b", rf"\g<1>: var(--{name})", svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"|width="[\d.]+pt"', "", svg)
