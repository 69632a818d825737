"""Rows as one page: plots, and every row in a table.

files -> records.py -> charts.py -> plots.py -> page.py
                    -> tables.py ------------->
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.bench.report.charts import charts_of
from runtime.bench.report.page import page
from runtime.bench.report.plots import Plotter
from runtime.bench.report.records import read_records


def write_report(files: Sequence[Path], output: Path, png_folder: Path | None = None) -> dict[str, Any]:
    """Writes one HTML file that asks for nothing else, and each plot as a picture too if there is a folder for them.

    Args:
        files: .jsonl files of rows, or of steps as a `StepLog` writes them.

    Returns:
        What was read and written.

    Raises:
        ConfigError: a line is no JSON object, no file has a row, or matplotlib is not installed.
    """
    plotter = Plotter()
    records = read_records(files)
    charts = charts_of(records)
    output.write_text(page(records, charts, plotter), encoding="utf-8")
    pictures = [] if png_folder is None else [png_folder / f"{i:02d}-{c.name}.png" for i, c in enumerate(charts, 1)]
    for chart, path in zip(charts, pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        plotter.write_png(chart, path)
    return {
        "output": str(output),
        "files": [{"path": str(one.path), "rows": len(one.rows), "steps": len(one.steps)} for one in records],
        "charts": [chart.title for chart in charts],
        "png": list(map(str, pictures)),
    }
