"""Simulate serving: the real scheduler under a virtual clock, on a modelled device."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_repeated_tile_share
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.bench.scenarios import Request
    from runtime.simulation import Report, Settings, Slo, StepTimes, Workload
    from runtime.simulation.run import Trace

_EXIT_DIFFERS = 1

_DEVICE_FLAGS = ("bandwidth", "flops", "link", "memory", "utilization", "launch_s", "host_s")
_WORKLOAD_FLAGS = {
    "rate": (float, "requests a second; inf: all at once; default: the workload's own"),
    "cv": (float, "coefficient of variation of the gaps between arrivals; 1: Poisson"),
    "num_requests": (int, "requests in all; default: 1000"),
    "concurrency": (int, "closed loop: requests alive at any time"),
    "queue_depth": (int, "closed loop: requests waiting at any time"),
    "max_tokens": (int, "what each request asks for; 0: up to the model's length"),
    "num_trees": (int, "trees of shared prefixes"),
    "branching": (int, "children of each node of a prefix tree"),
    "depth": (int, "levels of a prefix tree"),
    "segment_len": (int, "tokens of each level of a prefix tree"),
    "prompt_share": (float, "share of each prompt that is shared prefix, instead of segments"),
    "seed": (int, "the same seed draws the same requests"),
}
_SETTING_FLAGS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "max_model_len",
    "cpu_kv_tokens",
    "cpu_bandwidth",
    "num_steps_in_flight",
    "num_replicas",
    "report_interval_s",
    "num_threads",
)
_SCENARIO_SETTINGS = {"block_size": 64}  # of an engine on CUDA
_SLO_FLAGS = {
    "ttft_ms": "to the first token",
    "tpot_ms": "for each further token",
    "e2e_ms": "in all",
    "gap_ms": "between two tokens",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_device_arguments(parser.add_argument_group("step times"))
    workload = parser.add_argument_group("workload")
    workload.add_argument("--workload", default="azure-conversation", metavar="NAME", help="see docs/simulation.md")
    workload.add_argument("--scenario", metavar="NAME", help="requests of a benchmark, all there at the start, instead")
    workload.add_argument("--trace", metavar="FILE", help="requests from a .csv or .jsonl file instead")
    for name, (kind, text) in _WORKLOAD_FLAGS.items():
        workload.add_argument(_flag(name), type=kind, help=text)
    _add_engine_arguments(parser.add_argument_group("engine"))
    slo = parser.add_argument_group("service level")
    for name, text in _SLO_FLAGS.items():
        slo.add_argument(_flag(f"slo_{name}"), type=float, default=math.inf, help=f"most milliseconds {text}")
    slo.add_argument("--find-capacity", action="store_true", help="the highest rate that meets the limits")
    slo.add_argument("--slo-share", type=float, default=0.99, help="of the requests that must meet them")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="figures as one JSON object; -: standard output")
    output.add_argument("--csv", metavar="FILE", help="one line for each request")
    output.add_argument("--plot", metavar="FILE", help="a picture; needs matplotlib")
    output.add_argument("--append", metavar="FILE", help="add the figures to a .jsonl file, with device and versions")
    output.add_argument("--event-log", metavar="FILE", help="record events and decisions, for --replay")
    replayed = parser.add_argument_group("replay")
    replayed.add_argument(
        "--replay", metavar="FILE", help="compare the decisions of an event log; nothing else is used"
    )


def run(args: argparse.Namespace) -> int:
    if args.replay:
        return _replay(args)
    from runtime.simulation import find_capacity, simulate

    _complete_settings(args)

    times, slo = _step_times(args), _slo(args)
    settings = _settings(args, times)
    workload = _requests(args, settings)
    if not args.find_capacity:
        report = simulate(workload, settings, slo)
        return _write(args, report, _scenario(args, times) | report.figures)
    if args.trace or args.scenario:
        raise ConfigError(
            f"--find-capacity changes the rate, which a {'trace' if args.trace else 'scenario'} does not have",
            hint="give --workload NAME",
        )
    capacity = find_capacity(workload, settings, slo, share=args.slo_share)  # type: ignore[arg-type]
    found = {"capacity_per_s": capacity.rate, "tried": capacity.tried}
    return _write(args, capacity.report, _scenario(args, times) | found | capacity.report.figures)


def _replay(args: argparse.Namespace) -> int:
    from runtime.simulation import replay

    found = replay(args.replay)
    _print(args, found.figures)
    if found.problem is not None:
        print(f"runtime: {found.problem}", file=sys.stderr)
    return 0 if found.problem is None else _EXIT_DIFFERS


def _add_device_arguments(group: argparse._ArgumentGroup) -> None:
    from runtime.simulation import Device

    group.add_argument("--config", metavar="DIR", help="folder with config.json: a roofline of this model")
    group.add_argument("--calibration", metavar="FILE", help="a calibration file")
    group.add_argument(
        "--calibrate",
        metavar="FILE",
        help="fit to recorded steps, JSON lines; --config beside it ties attention to products",
    )
    group.add_argument("--calibrate-on", metavar="NAMES", help="only to the steps of these scenarios; commas between")
    add_repeated_tile_share(group)
    group.add_argument("--save-calibration", metavar="FILE", help="write the step times that are used")
    group.add_argument("--tp", type=int, default=1, help="devices that share the model")
    device = Device()
    for name in _DEVICE_FLAGS:
        group.add_argument(_flag(name), type=float, default=getattr(device, name), help="of the device; see Device")


def _add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    from runtime.simulation import Settings, StepTimes
    from runtime.simulation.run import ROUTERS

    defaults = Settings(step_times=StepTimes(buckets=()))
    for name in _SETTING_FLAGS:
        value = getattr(defaults, name)
        group.add_argument(_flag(name), type=type(value), help=f"see Settings; default: {value}")
    group.add_argument("--kv-tokens", type=int, help="tokens that the KV pool of a replica holds")
    group.add_argument("--num-blocks", type=int, help="the same in blocks")
    group.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True, help=" ")
    group.add_argument("--eviction", default="lru", help="lru or cost: which cached block is given up first")
    group.add_argument("--policy", default="fcfs", help="fcfs, priority or fair: who goes first")
    group.add_argument(
        "--admission", default=defaults.admission, help="past_future, max_tokens, none or oracle: which requests start"
    )
    group.add_argument("--admission-reserve", type=float, help="share of the blocks that a predicted peak leaves free")
    group.add_argument("--target-itl-ms", type=float, default=0.0, help="prompt chunks keep steps that decode below it")
    group.add_argument("--router", choices=ROUTERS, default=defaults.router, help="of a fleet")


def _step_times(args: argparse.Namespace) -> StepTimes:
    _require_one_source(args)
    times = _times_of_source(args)
    if args.save_calibration:
        times.save(args.save_calibration)
    return times


def _require_one_source(args: argparse.Namespace) -> None:
    """--config alone means a roofline; beside --calibrate it says what is calibrated."""
    sources = [name for name in ("config", "calibration", "calibrate") if getattr(args, name)]
    if args.calibrate and args.config:
        sources.remove("config")
    if len(sources) != 1:
        raise ConfigError(
            f"{len(sources)} sources of step times: exactly one is needed",
            hint="give --config DIR, --calibration FILE or --calibrate FILE",
        )


def _times_of_source(args: argparse.Namespace) -> StepTimes:
    from runtime.simulation import Device, calibrate, load_calibration, roofline, tile_tokens

    if args.calibration:
        return load_calibration(args.calibration)
    if args.calibrate:
        return calibrate(
            args.calibrate,
            scenarios=args.calibrate_on.split(",") if args.calibrate_on else (),
            tile_tokens=tile_tokens(args.config) if args.config else None,
            repeated_tile_share=args.repeated_tile_share,
        )
    device = Device(**{name: getattr(args, name) for name in _DEVICE_FLAGS})
    return roofline(args.config, device, tp=args.tp, max_num_seqs=args.max_num_seqs)


def _complete_settings(args: argparse.Namespace) -> None:
    """Settings that were not given: those of the engine that a scenario is measured with, or the defaults."""
    from runtime.bench.scenarios import fit
    from runtime.simulation import Settings, StepTimes

    fitted: dict[str, Any] = {**_SCENARIO_SETTINGS, **fit(_scenario_requests(args))} if args.scenario else {}
    defaults = Settings(step_times=StepTimes(buckets=()), **fitted)
    for name in _SETTING_FLAGS:
        if getattr(args, name) is None:
            setattr(args, name, getattr(defaults, name))


def _scenario_requests(args: argparse.Namespace) -> Sequence[Request]:
    from runtime.bench.scenarios import requests_of

    if args.trace:
        raise ConfigError("--trace and --scenario both say what is asked: give one of them")
    return requests_of(args.scenario)


def _settings(args: argparse.Namespace, times: StepTimes) -> Settings:
    from runtime.simulation import Settings

    if args.kv_tokens is not None and args.num_blocks is not None:
        raise ConfigError("--kv-tokens and --num-blocks both size the KV pool: give one of them")
    if args.kv_tokens is not None and args.kv_tokens < args.block_size:
        raise ConfigError(
            f"--kv-tokens {args.kv_tokens}: must be at least {args.block_size}, one KV block",
            hint="--block-size makes blocks smaller",
        )
    num_blocks = args.num_blocks if args.kv_tokens is None else args.kv_tokens // max(args.block_size, 1)
    return Settings(
        step_times=times,
        num_blocks=num_blocks,
        enable_prefix_caching=args.enable_prefix_caching,
        router=args.router,
        event_log=args.event_log,
        admission=args.admission,
        admission_reserve=args.admission_reserve,
        target_itl_ms=args.target_itl_ms,
        scheduler_options={"policy": args.policy, "eviction": args.eviction},
        **{name: getattr(args, name) for name in _SETTING_FLAGS},
    )


def _slo(args: argparse.Namespace) -> Slo:
    from runtime.simulation import Slo

    return Slo(**{name: getattr(args, f"slo_{name}") for name in _SLO_FLAGS})


def _requests(args: argparse.Namespace, settings: Settings) -> Workload | Trace:
    from runtime.bench.simulation import trace_of
    from runtime.simulation import read_trace
    from runtime.simulation.workloads import with_changes, workload_named

    given = {name: getattr(args, name) for name in _WORKLOAD_FLAGS}
    if not args.trace and not args.scenario:
        return with_changes(workload_named(args.workload), **_without_rate_if_closed(given))
    for name, value in given.items():
        if value is not None:
            source = "scenario" if args.scenario else "trace"
            raise ConfigError(f"{_flag(name)} describes made-up requests: a {source} has its own")
    if args.scenario:
        return trace_of(_scenario_requests(args))
    return read_trace(args.trace, max_len=settings.replica().max_len)


def _without_rate_if_closed(given: dict[str, Any]) -> dict[str, Any]:
    closed = [name for name in ("concurrency", "queue_depth") if given[name]]
    if closed and given["rate"] is not None:
        raise ConfigError(f"--rate and {_flag(closed[0])}: arrivals are an open loop or a closed one")
    return given


def _scenario(args: argparse.Namespace, times: StepTimes) -> dict[str, Any]:
    """What was simulated, as far as it was chosen."""
    names = (
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "policy",
        "admission",
        "admission_reserve",
        "target_itl_ms",
        "eviction",
        "cpu_kv_tokens",
        "num_replicas",
        "router",
        *_WORKLOAD_FLAGS,
    )
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    source = Path(args.trace).name if args.trace else args.scenario or args.workload
    return {"engine": "simulated", "scenario": source, "step_times": times.source, **chosen}


def _write(args: argparse.Namespace, report: Report, figures: dict[str, Any]) -> int:
    # JSON has no infinity
    figures = {k: str(v) if v in (math.inf, -math.inf) else v for k, v in figures.items()}
    _print(args, figures)
    if args.csv:
        report.write_csv(args.csv)
    if args.plot:
        report.plot(args.plot)
    if args.append:
        from runtime.bench.rows import append_row, environment

        append_row({**figures, **environment("cpu")}, Path(args.append))
    return 0


def _print(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    text = json.dumps(figures)
    print(text if args.json == "-" else _table(figures))
    if args.json not in (None, "-"):
        Path(args.json).write_text(text + "\n", encoding="utf-8")


def _table(figures: dict[str, Any]) -> str:
    width = max(map(len, figures))
    return "\n".join(f"{name:{width}}  {_text(value)}" for name, value in figures.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
