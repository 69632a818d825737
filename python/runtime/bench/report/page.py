"""The HTML around plots and tables: one file, no script, and a policy under which it can ask for nothing."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from runtime import __version__
from runtime.bench.report.charts import Chart
from runtime.bench.report.plots import INK, LIGHT, LINE, NUM_COLORS, Plotter
from runtime.bench.report.records import Records, printable
from runtime.bench.report.tables import html_of, step_summary, tables_of

DARK = {
    INK: "#e6edf3",
    LINE: "#3d444d",
    **dict(
        zip(
            (f"s{i}" for i in range(NUM_COLORS)),
            ("#58a6ff", "#ffa657", "#56d364", "#bc8cff", "#e3b341", "#ff7bbd", "#9da7b3", "#4cc9d6"),
        )
    ),
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --soft: #f6f8fa; LIGHT }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --soft: #161b22; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem } h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; border-bottom: 1px solid var(--line) }
nav { margin-bottom: 1rem } nav a { color: var(--s0); margin-right: 1rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem;
  align-items: start }
figure { margin: 0; padding: 1rem; border: 1px solid var(--line); border-radius: 6px; min-width: 0 }
figure svg { width: 100%; height: auto; display: block }
figcaption { font-weight: 600; margin-bottom: .5rem; overflow-wrap: anywhere }
figcaption small, .shared { display: block; font-weight: 400; font-size: .85rem; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .5rem 0 1.5rem }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { background: var(--soft); vertical-align: bottom } th span { font-weight: 400; display: block }
td.n { text-align: right }
@media print { .plots { display: block } figure { break-inside: avoid; margin-bottom: 1rem } }
"""


def page(records: Sequence[Records], charts: Sequence[Chart], plotter: Plotter) -> str:
    """The whole document."""
    plots = "\n".join(_figure(chart, plotter, f"c{i}-") for i, chart in enumerate(charts))
    sections = "\n".join(_section(one, f"f{i}") for i, one in enumerate(records))
    links = "".join(f'<a href="#f{i}">{_escaped(one.path.name)}</a>' for i, one in enumerate(records))
    count = sum(len(one.rows) for one in records)
    title = f"Benchmarks: {', '.join(one.path.name for one in records)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>{_style()}</style>
</head>
<body>
<h1>Benchmarks</h1>
<p>{count:,} rows of {len(records)} files, shown by runtime {html.escape(__version__)}.
A row says where it was measured; rows of different devices are not comparable in time.</p>
<nav>{links}</nav>
<div class=plots>
{plots}
</div>
{sections}
</body>
</html>
"""


def _figure(chart: Chart, plotter: Plotter, prefix: str) -> str:
    note = f"<small>{_escaped(chart.note)}</small>" if chart.note else ""
    caption = f"<figcaption>{_escaped(chart.title)}{note}</figcaption>"
    image = plotter.svg(chart, prefix).replace("<svg", f'<svg role="img" aria-label="{_escaped(chart.title)}"', 1)
    return f"<figure>{caption}{image}</figure>"


def _section(records: Records, anchor: str) -> str:
    parts = [f'<h2 id="{anchor}">{_escaped(records.path.name)}</h2>', *_contents(records)]
    return "\n".join(parts)


def _contents(records: Records) -> Iterator[str]:
    if not records.rows and not records.steps:
        yield "<p>No rows.</p>"
    yield from step_summary(records.steps)
    yield from (html_of(table) for table in tables_of(records.rows))


def _style() -> str:
    variables = ({f"--{name}": color for name, color in colors.items()} for colors in (LIGHT, DARK))
    light, dark = ("; ".join(f"{name}: {color}" for name, color in one.items()) for one in variables)
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def _escaped(words: str) -> str:
    return html.escape(printable(words))
