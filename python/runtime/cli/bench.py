"""Measure latency, throughput, the scheduler, its policies or sums over GPUs, or check the simulator: JSON rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.cli import bench_serve, bench_startup
from runtime.cli.parser import add_engine_arguments, add_repeated_tile_share, engine_arguments
from runtime.errors import ConfigError

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = "{latency,suite,serve,startup,scheduler,simulation,admission,fairness,allreduce,kernels}"
    verbs = parser.add_subparsers(dest="what", required=True, metavar=names)
    latency = verbs.add_parser("latency", help="mean time of a decode step")
    latency.add_argument("--scenario", help="decode_b1, decode_b8, decode_b64, decode_b256 or decode_b8_long")
    latency.add_argument("--batch", type=int, help="requests; with --in and --out instead of a scenario")
    latency.add_argument("--in", type=int, dest="input_len", help="tokens of each prompt")
    latency.add_argument("--out", type=int, dest="output_len", help="tokens of each output")
    latency.add_argument("--overhead", action="store_true", help="a CPU step without prepare_step, model and sampler")
    latency.add_argument("--steps", type=int, default=1000, help="steps that --overhead looks at")
    latency.add_argument("--gaps", action="store_true", help="the time between two steps on a GPU")
    suite = verbs.add_parser("suite", help="many scenarios on one engine")
    suite.add_argument("--scenarios", required=True, metavar="NAMES", help="with commas between; 'help' lists them")
    suite.add_argument("--step-log", metavar="FILE", help="write each step of the measured runs, for a calibration")
    for verb in (latency, suite):
        verb.add_argument("--model", metavar="DIR", help="folder of a checkpoint; default: the built-in model")
        verb.add_argument("--repeat", type=int, default=3, help="runs, of which the median counts")
        add_engine_arguments(verb)
    serve = verbs.add_parser("serve", help="load on an OpenAI-compatible server, and what its clients see")
    bench_serve.add_arguments(serve)
    startup = verbs.add_parser("startup", help="from the process's first moment to ready, phase by phase")
    bench_startup.add_arguments(startup)
    scheduler = verbs.add_parser("scheduler", help="schedule and update, without a model")
    scheduler.add_argument("--batch", type=int, default=64, help="running decodes")
    scheduler.add_argument("--steps", type=int, default=2000, help="steps")
    scheduler.add_argument("--calls", type=int, metavar="N", help="instead: what one call costs from Python, of N each")
    scheduler.add_argument("--event-log", metavar="FILE", help="record events and decisions meanwhile")
    scheduler.add_argument("--prefix-hit", action="store_true", help="submit and plan a prompt that is cached instead")
    scheduler.add_argument("--in", type=int, dest="input_len", default=8192, help="tokens of that prompt")
    simulation = verbs.add_parser("simulation", help="measured scenarios beside the simulator's prediction of them")
    simulation.add_argument("--step-log", metavar="FILE", required=True, help="written by the suite: step times")
    simulation.add_argument("--rows", metavar="FILE", required=True, help=".jsonl file of the suite's rows")
    simulation.add_argument("--model", metavar="DIR", help="folder with config.json; default: the built-in model")
    simulation.add_argument(
        "--calibrate-on", metavar="NAMES", default="decode_b64,fixed_1024", help="with commas between"
    )
    simulation.add_argument("--scenarios", metavar="NAMES", default="mixed_256,prefix_512", help="that are predicted")
    add_repeated_tile_share(simulation)
    admission = verbs.add_parser("admission", help="the modes of admission side by side, simulated")
    admission.add_argument("--num-requests", type=int, default=12000, help="of each workload")
    fairness = verbs.add_parser(
        "fairness", help="two tenants under fair sharing and first come, first served, simulated"
    )
    for verb in (admission, fairness):
        verb.add_argument("--config", metavar="DIR", required=True, help="folder with config.json: step times")
    allreduce = verbs.add_parser("allreduce", help="sums over GPUs in a graph, ours and NCCL's, by size")
    allreduce.add_argument("--ranks", type=int, default=2, help="GPUs; default: 2")
    kernels = verbs.add_parser("kernels", help="hot kernels at a model's shapes, on a GPU")
    kernels.add_argument("--model", metavar="NAME", default="llama-3.1-8b", help="another name lists them")
    kernels.add_argument("--only", metavar="OPS", help="with commas between; another name lists them")
    for verb in (latency, suite, serve, startup, scheduler, simulation, admission, fairness, allreduce, kernels):
        verb.add_argument("--json", action="store_true", help="print rows as JSON")
        verb.add_argument("--append", metavar="FILE", help="add the rows to a .jsonl file")


def run(args: argparse.Namespace) -> int:
    if args.append and not Path(args.append).parent.is_dir():  # said before the minutes of measuring
        raise ConfigError(f"--append={args.append}: there is no folder {Path(args.append).parent}")
    makers = {
        "latency": _latency,
        "suite": _suite,
        "serve": _serve,
        "startup": _startup,
        "scheduler": _scheduler,
        "simulation": _simulation,
        "admission": _admission,
        "fairness": _fairness,
        "allreduce": _allreduce,
        "kernels": _kernels,
    }
    for row in makers[args.what](args):
        print(json.dumps(row) if args.json else _table(row), flush=True)
        if args.append:
            from runtime.bench.report import append_row

            append_row(row, Path(args.append))
    return 0


def _latency(args: argparse.Namespace) -> Iterator[Row]:
    for name in ("batch", "input_len", "output_len", "repeat", "steps"):
        _require_positive(name, getattr(args, name))
    from runtime.bench import latency
    from runtime.bench.scenarios import Scenario, latency_scenario

    name = args.scenario or f"decode_b{args.batch or 1}"
    base = latency_scenario(name) if args.scenario else Scenario(args.batch or 1)
    chosen = Scenario(args.batch or base.batch, args.input_len or base.input_len, args.output_len or base.output_len)
    clock = latency.StepClock()
    arguments: dict[str, Any] = {**engine_arguments(args), **latency.fit(chosen)}
    if args.overhead:
        name, arguments["device"] = f"overhead_b{chosen.batch}", "cpu"
    with latency.engine_for(args.model, arguments, clock, phases=args.overhead, gaps=args.gaps) as llm:
        if args.overhead:
            found = latency.overhead(llm, clock, chosen, args.steps)
        elif args.gaps:
            _require_cuda(llm.device)
            name, found = f"{name}_gaps", latency.gaps(llm, clock, chosen)
        else:
            found = latency.measure(llm, clock, chosen, args.repeat)
        device = llm.device
    sizes = {"batch": chosen.batch, "in": chosen.input_len, "out": chosen.output_len}
    yield {**_head(args), "scenario": name, **sizes, **found, **_environment(device)}


def _suite(args: argparse.Namespace) -> Iterator[Row]:
    _require_positive("repeat", args.repeat)
    from runtime.bench import suite

    if args.scenarios == "help":
        print(*suite.scenario_names())
        return
    arguments = engine_arguments(args)
    fitted = {name: value for name, value in arguments.items() if name not in ("max_num_seqs", "max_model_len")}
    for row in suite.run(args.model, args.scenarios.split(","), fitted, args.repeat, args.step_log):
        yield {**_head(args), **row, **_environment(None)}


def _serve(args: argparse.Namespace) -> Iterator[Row]:
    for row in bench_serve.rows(args):
        here = _environment(bench_serve.device_of(args))
        yield {**row, **here, **({"device": None} if bench_serve.is_remote(args) else {})}


def _startup(args: argparse.Namespace) -> Iterator[Row]:
    for row in bench_startup.rows(args):
        yield {**row, **_environment(None if args.device == "auto" else args.device)}


def _scheduler(args: argparse.Namespace) -> Iterator[Row]:
    _require_positive("batch", args.batch)
    _require_positive("steps", args.steps)
    _require_positive("calls", args.calls)
    from runtime.bench import scheduler, scheduler_calls

    if args.calls:
        scenario: Row = {"scenario": "scheduler_calls"}
        found = scheduler_calls.measure(args.calls)
    elif args.prefix_hit:
        if args.input_len <= scheduler.BLOCK_SIZE:
            raise ConfigError(f"--in={args.input_len}: must be above a block of {scheduler.BLOCK_SIZE} tokens")
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
    _require_positive("num_requests", args.num_requests)
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
    yield from kernels.measure(args.model, ops, _environment("cpu")["commit"] or "")


def _simulated(args: argparse.Namespace) -> Row:
    return {"engine": "simulated", "model": Path(args.config).resolve().name}


def _head(args: argparse.Namespace) -> Row:
    model = Path(args.model).resolve().name if args.model else "builtin"
    mode = {"deterministic": True} if args.deterministic else {}
    return {"engine": "runtime", "model": model, "tp": args.tensor_parallel_size, **mode}


def _environment(device: str | None) -> Row:
    """None: the device that an engine takes when none is given."""
    import torch

    from runtime.bench.report import environment

    return environment(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _require_cuda(device: str) -> None:
    if device != "cuda":
        raise ConfigError(f"--gaps looks at a GPU, and the engine runs on {device}", hint="--overhead is for a CPU")


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(
            f"--{name.removesuffix('_len').removesuffix('put').replace('_', '-')}={value}: must be at least 1"
        )


def _table(row: Row) -> str:
    width = max(map(len, row))
    return "\n".join(f"{name:{width}}  {value}" for name, value in row.items())
