"""`runtime bench report`: rows as one page of plots and tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError


def add_verb(verbs: Any) -> None:
    """`runtime bench report`."""
    parser = verbs.add_parser("report", help="rows of .jsonl files as one HTML page of plots and tables")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".jsonl file of rows, or of steps (--step-log)")
    parser.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the page")
    parser.add_argument("--png", metavar="FOLDER", help="write each plot as a picture, too")
    parser.add_argument("--json", action="store_true", help="print what was read and written as JSON")


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if not output.parent.is_dir():
        raise ConfigError(f"--output={args.output}: there is no folder {output.parent}")
    if args.png and Path(args.png).exists() and not Path(args.png).is_dir():
        raise ConfigError(f"--png={args.png}: must be a folder")
    from runtime.bench.report import write_report

    found = write_report([Path(name) for name in args.files], output, Path(args.png) if args.png else None)
    print(json.dumps(found) if args.json else _summary(found))
    return 0


def _summary(found: dict[str, Any]) -> str:
    counts = ", ".join(f"{one['path']} ({one['rows'] + one['steps']} rows)" for one in found["files"])
    return f"{found['output']}: {len(found['charts'])} plots of {counts}"
