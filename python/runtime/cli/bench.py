"""Measure engines, the scheduler, its policies or sums over GPUs, check the simulator, or show rows as a page.

Without a verb, `suite`: runtime bench --suite field --engine transformers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli import bench_engines, bench_report, bench_serve, bench_startup
from runtime.cli.bench_engines import require_positive
from runtime.cli.parser import ArgumentParser, add_repeated_tile_share
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.bench.rows import Row

_OF_ENGINES = ("latency", "throughput", "suite")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs of `runtime bench`; all but `report` print rows, and may append them to a file."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="VERB")
    if isinstance(parser, ArgumentParser):
        parser.default_verb = "suite"
    measuring = bench_engines.add_verbs(verbs)
    serve = verbs.add_parser("serve", help="load on an OpenAI-compatible server, and what its clients see")
    bench_serve.add_arguments(serve)
    startup = verbs.add_parser("startup", help="from the process's first moment to ready, phase by phase")
    bench_startup.add_arguments(startup)
    others = (_add_scheduler(verbs), _add_simulation(verbs), *_add_policies(verbs), *_add_gpu_verbs(verbs))
    for verb in (*measuring, serve, startup, *others):
        verb.add_argument("--json", action="store_true", help="print rows as JSON")
        verb.add_argument("--append", metavar="FILE", help="add the rows to a .jsonl file")
    bench_report.add_verb(verbs)


def _add_scheduler(verbs: Any) -> argparse.ArgumentParser:
    scheduler: argparse.ArgumentParser = verbs.add_parser("scheduler", help="schedule and update, without a model")
    scheduler.add_argument("--batch", type=int, default=64, help="running decodes")
    scheduler.add_argument("--steps", type=int, default=2000, help="steps")
    scheduler.add_argument("--calls", type=int, metavar="N", help="instead: what one call costs from Python, of N each")
    scheduler.add_argument("--event-log", metavar="FILE", help="record events and decisions meanwhile")
    scheduler.add_argument("--prefix-hit", action="store_true", help="submit and plan a prompt that is cached instead")
    scheduler.add_argument("--in", type=int, dest="input_len", default=8192, help="tokens of that prompt")
    return scheduler


def _add_simulation(verbs: Any) -> argparse.ArgumentParser:
    simulation: argparse.ArgumentParser = verbs.add_parser(
        "simulation", help="measured scenarios beside the simulator's prediction of them"
    )
    simulation.add_argument("--step-log", metavar="FILE", required=True, help="written by the suite: step times")
    simulation.add_argument("--rows", metavar="FILE", required=True, help=".jsonl file of the suite's rows")
    simulation.add_argument("--model", metavar="DIR", help="folder with config.json; default: the built-in model")
    simulation.add_argument(
        "--calibrate-on", metavar="NAMES", default="decode_b64,fixed_1024", help="with commas between"
    )
    simulation.add_argument("--scenarios", metavar="NAMES", default="mixed_256,prefix_512", help="that are predicted")
    add_repeated_tile_share(simulation)
    return simulation


def _add_policies(verbs: Any) -> tuple[argparse.ArgumentParser, ...]:
    admission = verbs.add_parser("admission", help="the modes of admission side by side, simulated")
    admission.add_argument("--num-requests", type=int, default=12000, help="of each workload")
    fairness = verbs.add_parser(
        "fairness", help="two tenants under fair sharing and first come, first served, simulated"
    )
    for verb in (admission, fairness):
        verb.add_argument("--config", metavar="DIR", required=True, help="folder with config.json: step times")
    return admission, fairness


def _add_gpu_verbs(verbs: Any) -> tuple[argparse.ArgumentParser, ...]:
    allreduce = verbs.add_parser("allreduce", help="sums over GPUs in a graph, ours and NCCL's, by size")
    allreduce.add_argument("--ranks", type=int, default=2, help="GPUs; default: 2")
    kernels = verbs.add_parser("kernels", help="hot kernels at a model's shapes, on a GPU")
    kernels.add_argument("--model", metavar="NAME", default="llama-3.1-8b", help="another name lists them")
    kernels.add_argument("--only", metavar="OPS", help="with commas between; another name lists them")
    return allreduce, kernels


def run(args: argparse.Namespace) -> int:
    """Measures what was asked for, and prints or appends each row as soon as it is there."""
    if args.what == "report":
        return bench_report.run(args)
    if args.append and not Path(args.append).parent.is_dir():  # said before the minutes of measuring
        raise ConfigError(f"--append={args.append}: there is no folder {Path(args.append).parent}")
    makers = {
        "latency": bench_engines.latency,
        "throughput": bench_engines.throughput,
        "suite": bench_engines.suite,
        "serve": _serve,
        "startup": _startup,
        "scheduler": _scheduler,
        "simulation": _simulation,
        "admission": _admission,
        "fairness": _fairness,
        "allreduce": _allreduce,
        "kernels": _kernels,
    }
    from runtime.bench.rows import append_row

    for number, row in enumerate(makers[args.what](args)):
        print(_text(args, row, is_first=number == 0), flush=True)
        if args.append:
            append_row(row, Path(args.append))
    return 0


def _text(args: argparse.Namespace, row: Row, *, is_first: bool) -> str:
    from runtime.bench import table

    if args.json:
        return json.dumps(row)
    if args.what not in _OF_ENGINES:
        return table.listing(row)
    return f"{table.heading()}\n{table.line(row)}" if is_first else table.line(row)


def _serve(args: argparse.Namespace) -> Iterator[Row]:
    for row in bench_serve.rows(args):
        here = _environment(bench_serve.device_of(args))
        yield {**row, **here, **({"device": None} if bench_serve.is_remote(args) else {})}


def _startup(args: argparse.Namespace) -> Iterator[Row]:
    for row in bench_startup.rows(args):
        yield {**row, **_environment(None if args.device == "auto" else args.device)}


def _scheduler(args: argparse.Namespace) -> Iterator[Row]:
    require_positive("batch", args.batch)
    require_positive("steps", args.steps)
    require_positive("calls", args.calls)
    from runtime.bench import scheduler, scheduler_calls

    if args.calls:
        scenario: Row = {"scenario": "scheduler_calls"}
        found = scheduler_calls.measure(args.calls)
    elif args.prefix_hit:
        if args.input_len <= scheduler.BLOCK_SIZE:
            least = scheduler.BLOCK_SIZE + 1
            raise ConfigError(f"--in={args.input_len}: must be above a block of {least - 1} tokens; nearest: {least}")
        scenario = {"scenario": f"prefix_hit_{args.input_len}"}
        found = scheduler.measure_prefix_hit(args.input_len)
    else:
        name = f"scheduler_b{args.batch}" + ("_recorded" if args.event_log else "")
        scenario = {"scenario": name, "batch": args.batch}
        found = scheduler.measure(args.batch, num_steps=args.steps, event_log=args.event_log)
        found |= scheduler.measure_admission(args.batch)
    yield {"engine": "runtime", **scenario, **found, **_environment("cpu")}


def _simulation(args: argparse.Namespace) -> Iterator[Row]:
    from runtime.bench.simulation import compare

    rows = compare(
        args.step_log,
        args.rows,
        model=args.model,
        calibrated_on=args.calibrate_on.split(","),
        scenarios=args.scenarios.split(","),
        repeated_tile_share=args.repeated_tile_share,
    )
    for row in rows:
        yield {"engine": "simulated", **row, **_environment("cpu")}


def _admission(args: argparse.Namespace) -> Iterator[Row]:
    require_positive("num_requests", args.num_requests)
    from runtime.bench import admission

    for row in admission.admission(args.config, args.num_requests):
        yield {**_simulated(args), "num_requests": args.num_requests, **row, **_environment("cpu")}


def _fairness(args: argparse.Namespace) -> Iterator[Row]:
    from runtime.bench import admission

    for row in admission.fairness(args.config):
        yield {**_simulated(args), **row, **_environment("cpu")}


def _allreduce(args: argparse.Namespace) -> Iterator[Row]:
    from runtime.bench import all_reduce

    for row in all_reduce.measure(args.ranks):
        yield {"engine": "runtime", **row, **_environment("cuda")}


def _kernels(args: argparse.Namespace) -> Iterator[Row]:
    from runtime.bench import kernels

    ops = args.only.split(",") if args.only else kernels.OPS
    yield from kernels.measure(args.model, ops)


def _simulated(args: argparse.Namespace) -> Row:
    return {"engine": "simulated", "model": Path(args.config).resolve().name}


def _environment(device: str | None) -> Row:
    """None: the device that an engine takes when none is given."""
    import torch

    from runtime.bench.rows import environment

    return environment(device or ("cuda" if torch.cuda.is_available() else "cpu"))
