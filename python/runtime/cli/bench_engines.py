"""`runtime bench latency | throughput | suite`: a model in one of the engines."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_engine_arguments, engine_arguments
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.bench.rows import Row
    from runtime.bench.scenarios import Offline, Scenario
    from runtime.bench.suite import Bench

_SIZES = {"batch": "--batch", "input_len": "--in", "output_len": "--out"}


def add_verbs(verbs: Any) -> list[argparse.ArgumentParser]:
    """The three parsers."""
    latency = verbs.add_parser("latency", help="mean time of a decode step")
    latency.add_argument("--scenario", metavar="NAME", help="decode_b1, decode_b8, decode_b64, decode_b256, ...")
    latency.add_argument("--overhead", action="store_true", help="a CPU step without prepare_step, model and sampler")
    latency.add_argument("--steps", type=int, default=1000, help="steps that --overhead looks at")
    latency.add_argument("--gaps", action="store_true", help="the time between two steps on a GPU")
    throughput = verbs.add_parser("throughput", help="many requests, all there at the start or at a rate")
    throughput.add_argument("--scenario", metavar="NAME", help="mixed_256, fixed_1024, prefill_16x4096, ...")
    suite = verbs.add_parser("suite", help="many scenarios on one engine")
    suite.add_argument("--suite", metavar="NAME", help="field, decode or offline")
    suite.add_argument("--scenarios", "--scenario", metavar="NAMES", help="with commas between; 'help' lists them")
    suite.add_argument("--step-log", metavar="FILE", help="write each step of the measured runs, for a calibration")
    for verb in (latency, throughput):
        verb.add_argument("--batch", type=int, help="requests; with --in and --out instead of a scenario")
        verb.add_argument("--in", type=int, dest="input_len", help="tokens of each prompt")
        verb.add_argument("--out", type=int, dest="output_len", help="tokens of each output")
        verb.add_argument("--rate", type=float, help="open loop: so many requests a second, a Poisson stream")
        verb.add_argument("--trace", metavar="FILE", help="open loop: requests and their times from a .csv or .jsonl")
    for verb in (latency, throughput, suite):
        verb.add_argument("--engine", metavar="NAME", default="runtime", help="runtime, transformers or vllm")
        verb.add_argument("--model", metavar="DIR", help="folder of a checkpoint; default: the built-in model")
        verb.add_argument("--repeat", type=int, default=3, help="runs, of which the median counts")
        verb.add_argument("--scale", type=int, default=1, help="divides requests and lengths, for small machines")
        add_engine_arguments(verb)
    return [latency, throughput, suite]


def latency(args: argparse.Namespace) -> Iterator[Row]:
    """Of decode steps; with --rate or --trace the open loop of `throughput`."""
    _check_numbers(args)
    if args.rate is not None or args.trace:
        _refuse_beside(args, ("overhead", "gaps"), "--trace" if args.trace else "--rate")
        yield from throughput(args)
        return
    from runtime.bench import latency as bench_latency
    from runtime.bench.suite import sizes

    bench, (name, scenario) = _bench(args), _decode_scenario(args)
    fitted: dict[str, Any] = bench_latency.fit(scenario)
    if args.overhead or args.gaps:
        yield from _own_steps(args, bench, name, scenario, fitted)
        return
    bench_latency.require_decode_steps(scenario)
    engine = bench.open(fitted)
    try:
        found = bench_latency.measure(engine, scenario, bench.repeat)
        yield bench.row(engine, name, sizes(scenario.requests) | found)
    finally:
        engine.close()


def throughput(args: argparse.Namespace) -> Iterator[Row]:
    """Of a closed batch, or of an open loop."""
    _check_numbers(args)
    from runtime.bench import throughput as bench_throughput
    from runtime.bench.scenarios import fit
    from runtime.bench.suite import sizes

    bench, (name, scenario) = _bench(args), _offline_scenario(args)
    engine = bench.open(fit(scenario.requests))
    try:
        if scenario.is_open:
            found = {} if args.rate is None else {"rate": args.rate}
            found |= bench_throughput.open_loop(engine, scenario)
        else:
            found = bench_throughput.measure(engine, scenario, bench.repeat)
        yield bench.row(engine, name, sizes(scenario.requests) | found)
    finally:
        engine.close()


def suite(args: argparse.Namespace) -> Iterator[Row]:
    """Scenario after scenario on one engine, which lives as long as they fit into it."""
    _check_numbers(args)
    from runtime.bench import suite as bench_suite
    from runtime.bench.scenarios import SUITES, suite_named

    if args.scenarios == "help":
        names = bench_suite.scenario_names()
        print(json.dumps({"scenarios": names, "suites": SUITES}) if args.json else " ".join(names))
        return
    if bool(args.suite) == bool(args.scenarios):
        raise ConfigError(
            "a suite is chosen by --suite NAME or --scenarios NAMES, one of them", hint=f"suites: {', '.join(SUITES)}"
        )
    chosen = suite_named(args.suite) if args.suite else args.scenarios.split(",")
    yield from bench_suite.run(_bench(args), chosen, args.step_log)


def require_positive(name: str, value: int | None) -> None:
    """Refuses a number below 1 that was given for the argument `name`."""
    if value is not None and value < 1:
        flag = _SIZES.get(name, f"--{name.replace('_', '-')}")
        raise ConfigError(f"{flag}={value}: must be at least 1; nearest: 1")


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("batch", "input_len", "output_len", "repeat", "steps", "scale"):
        require_positive(name, getattr(args, name, None))
    rate = getattr(args, "rate", None)
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"--rate={rate}: must be a number of requests a second above 0")


def _bench(args: argparse.Namespace) -> Bench:
    """With the arguments of the engine that are not its defaults."""
    from runtime.bench.suite import Bench
    from runtime.config import EngineConfig

    defaults = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    given = {name: value for name, value in engine_arguments(args).items() if value != defaults[name]}
    if getattr(args, "overhead", False):
        given["device"] = "cpu"
    return Bench(args.engine, args.model, given, args.repeat, args.scale)


def _decode_scenario(args: argparse.Namespace) -> tuple[str, Scenario]:
    from runtime.bench.scenarios import Scenario, latency_scenario

    if args.scenario:
        _refuse_beside(args, _SIZES, "--scenario")
        return args.scenario, latency_scenario(args.scenario).scaled(args.scale)
    base = Scenario(args.batch or 1)
    chosen = Scenario(base.batch, args.input_len or base.input_len, args.output_len or base.output_len)
    return f"decode_b{chosen.batch}", chosen.scaled(args.scale)


def _offline_scenario(args: argparse.Namespace) -> tuple[str, Offline]:
    """By name, from a trace, or so many equal requests; at a rate, if there is one."""
    from runtime.bench.scenarios import Offline, Request, offline_scenario, traced

    if args.trace:
        _refuse_beside(args, ("scenario", *_SIZES, "rate"), "--trace")
        return "trace", traced(args.trace).scaled(args.scale)
    if args.scenario:
        _refuse_beside(args, _SIZES, "--scenario")
        name, chosen = args.scenario, offline_scenario(args.scenario)
    else:
        missing = [flag for size, flag in _SIZES.items() if getattr(args, size) is None]
        if missing:
            raise ConfigError(
                f"no {missing[0]}: requests are described by --batch, --in and --out together",
                hint="or by --scenario NAME or --trace FILE",
            )
        name = f"fixed_{args.batch}"
        chosen = Offline((Request(args.input_len, args.output_len),) * args.batch, 0.0, "total")
    chosen = chosen.scaled(args.scale)
    return (name, chosen) if args.rate is None else (f"{name}_rate", chosen.at_rate(args.rate))


def _own_steps(
    args: argparse.Namespace, bench: Bench, name: str, scenario: Scenario, fitted: dict[str, Any]
) -> Iterator[Row]:
    """What only the runtime's own engine shows of its steps."""
    from runtime.bench import latency as bench_latency
    from runtime.bench.suite import sizes

    flag = "--overhead" if args.overhead else "--gaps"
    if bench.engine != "runtime":
        raise ConfigError(f"{flag} looks into steps, which --engine {bench.engine} does not show")
    engine: Any = bench.open(fitted, phases=args.overhead, gaps=args.gaps)
    try:
        if args.overhead:
            name, found = f"overhead_b{scenario.batch}", bench_latency.overhead(engine, scenario, args.steps)
        else:
            _require_cuda(engine.device)
            name, found = f"{name}_gaps", bench_latency.gaps(engine, scenario)
        yield bench.row(engine, name, sizes(scenario.requests) | found)
    finally:
        engine.close()


def _refuse_beside(args: argparse.Namespace, names: Any, flag: str) -> None:
    for name in names:
        if getattr(args, name, None):
            other = _SIZES.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{other} and {flag} do not go together: give one of them")


def _require_cuda(device: str) -> None:
    if device != "cuda":
        raise ConfigError(f"--gaps looks at a GPU, and the engine runs on {device}", hint="--overhead is for a CPU")
