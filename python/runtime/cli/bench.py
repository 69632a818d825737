"""Measure latency or the scheduler; a row is one JSON object."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runtime.cli.parser import add_engine_arguments, engine_arguments
from runtime.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="{latency,scheduler}")
    latency = verbs.add_parser("latency", help="time per output token")
    latency.add_argument("--model", metavar="DIR", help="folder of a checkpoint; default: the built-in model")
    latency.add_argument("--scenario", help="decode_b1, decode_b8, decode_b64, decode_b256 or decode_b8_long")
    latency.add_argument("--batch", type=int, help="requests; with --in and --out instead of a scenario")
    latency.add_argument("--in", type=int, dest="input_len", help="tokens of each prompt")
    latency.add_argument("--out", type=int, dest="output_len", help="tokens of each output")
    latency.add_argument("--repeat", type=int, default=3, help="runs, of which the median counts")
    latency.add_argument("--overhead", action="store_true", help="a CPU step without prepare_step, model and sampler")
    latency.add_argument("--steps", type=int, default=1000, help="steps that --overhead looks at")
    add_engine_arguments(latency)
    scheduler = verbs.add_parser("scheduler", help="schedule and update, without a model")
    scheduler.add_argument("--batch", type=int, default=64, help="running decodes")
    scheduler.add_argument("--steps", type=int, default=2000, help="steps")
    for verb in (latency, scheduler):
        verb.add_argument("--json", action="store_true", help="print the row as JSON")
        verb.add_argument("--append", metavar="FILE", help="add the row to a .jsonl file")


def run(args: argparse.Namespace) -> int:
    row = _latency(args) if args.what == "latency" else _scheduler(args)
    print(json.dumps(row) if args.json else _table(row))
    if args.append:
        from runtime.bench.report import append_row

        append_row(row, Path(args.append))
    return 0


def _latency(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("batch", "input_len", "output_len", "repeat", "steps"):
        _require_positive(name, getattr(args, name))
    from runtime.bench import latency
    from runtime.bench.report import environment

    name = args.scenario or f"decode_b{args.batch or 1}"
    base = latency.scenario(name) if args.scenario else latency.Scenario(args.batch or 1)
    chosen = latency.Scenario(
        args.batch or base.batch, args.input_len or base.input_len, args.output_len or base.output_len
    )
    if args.overhead:
        found = latency.overhead(args.model, chosen, engine_arguments(args), args.steps)
    else:
        found = latency.measure(args.model, chosen, engine_arguments(args), args.repeat)
    device = found.pop("on")
    return {
        "engine": "runtime",
        "model": Path(args.model).resolve().name if args.model else "builtin",
        "tp": 1,
        "scenario": f"overhead_b{chosen.batch}" if args.overhead else name,
        "batch": chosen.batch,
        "in": chosen.input_len,
        "out": chosen.output_len,
        **found,
        **environment(device),
    }


def _scheduler(args: argparse.Namespace) -> dict[str, Any]:
    _require_positive("batch", args.batch)
    _require_positive("steps", args.steps)
    from runtime.bench import scheduler
    from runtime.bench.report import environment

    found = scheduler.measure(args.batch, num_steps=args.steps)
    return {
        "engine": "runtime",
        "scenario": f"scheduler_b{args.batch}",
        "batch": args.batch,
        **found,
        **environment("cpu"),
    }


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"--{name.removesuffix('_len').removesuffix('put')}={value}: must be at least 1")


def _table(row: dict[str, Any]) -> str:
    width = max(map(len, row))
    return "\n".join(f"{name:{width}}  {value}" for name, value in row.items())
