"""`runtime bench serve`: load on a server, and what its clients see."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_engine_arguments, given_engine_arguments
from runtime.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from runtime.bench.load.generator import LoadRun, Target
    from runtime.bench.load.plan import Plan

Row = dict[str, Any]

BUILTIN = ""  # of --spawn without a folder
_ENDPOINTS = ("completions", "chat")
_PACKAGES = ("h11", "msgspec")
_DEFAULT_LEN = 128
_DEFAULT_REQUESTS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_server_arguments(parser.add_argument_group("server"))
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=float, metavar="R", help="open loop: requests a second; inf: all at once")
    load.add_argument("--cv", type=float, default=1.0, help="of the gaps between requests; 1: Poisson, 0: constant")
    load.add_argument(
        "--concurrency", type=int, metavar="N", help="closed loop of N clients; with --rate: most requests open at once"
    )
    load.add_argument("--num-requests", type=int, metavar="N", help=f"default: {_DEFAULT_REQUESTS}, or as --duration")
    load.add_argument("--duration", type=float, metavar="S", help="no request is sent after so many seconds")
    load.add_argument("--in", type=int, dest="input_len", metavar="N", help=f"prompt tokens; default: {_DEFAULT_LEN}")
    load.add_argument("--out", type=int, dest="output_len", metavar="N", help=f"output tokens; default: {_DEFAULT_LEN}")
    load.add_argument("--trace", metavar="FILE", help="requests and their times, as `runtime simulate --trace` reads")
    load.add_argument("--scenario", metavar="NAME", help="requests of `runtime bench suite`, such as mixed_256")
    load.add_argument("--temperature", type=float, help="default: 0, or the scenario's")
    load.add_argument("--ignore-eos", action="store_true", help="outputs end by their length alone")
    load.add_argument("--seed", type=int, default=0, help="of prompts and times")
    load.add_argument("--warmup", type=int, default=1, metavar="N", help="requests before the clock starts")
    load.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of a request")
    slo = parser.add_argument_group("goodput")
    slo.add_argument("--slo-ttft", type=float, metavar="MS", help="most milliseconds to the first token")
    slo.add_argument("--slo-itl", type=float, metavar="MS", help="most milliseconds for a further token, in the mean")
    add_engine_arguments(parser)


def _add_server_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="of a server that runs, with or without /v1")
    group.add_argument(
        "--spawn", nargs="?", const=BUILTIN, metavar="MODEL", help="start `runtime serve` on loopback and end it"
    )
    group.add_argument("--offline-pair", action="store_true", help="with --spawn: first the same requests without HTTP")
    group.add_argument(
        "--start-timeout", type=float, default=600.0, metavar="S", help="until a spawned server is ready"
    )
    group.add_argument("--endpoint", default="completions", help="completions or chat")
    group.add_argument("--model-name", metavar="NAME", help="default: the first that the server lists")
    group.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that has the API key")
    group.add_argument("--vocab-size", type=int, default=256, help="prompts are random token ids below it")
    group.add_argument(
        "--chunk-usage",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for the tokens of each chunk, as vLLM and this server count them",
    )


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """One row.

    Raises:
        ConfigError: flags that do not go together, or a server that is not there.
    """
    _check(args)
    from runtime.bench.load.http_client import allow_many_connections

    allow_many_connections()
    plan = _plan(args)
    arguments = _engine(args, plan)
    offline = _run_offline(args, arguments, plan) if args.offline_pair else None
    with contextlib.ExitStack() as stack:
        url = args.base_url
        if args.spawn is not None:
            from runtime.bench.load.spawn import SpawnedServer
            from runtime.bench.progress import announce

            announce("starting the server")
            url = stack.enter_context(SpawnedServer(arguments, start_timeout_s=args.start_timeout)).url
        run = _run(args, plan, _target(args, url))
    yield _row(args, plan, run, offline)
    _report(run)


def _run(args: argparse.Namespace, plan: Plan, target: Target) -> LoadRun:
    from runtime.bench.load.generator import LoadGenerator
    from runtime.bench.progress import progress

    ends_by_time = args.duration is not None and args.rate is None
    with progress(None if ends_by_time else len(plan.requests) + args.warmup, "request") as advance:
        generator = LoadGenerator(target, plan, seed=args.seed, duration_s=args.duration, progress=advance)
        return asyncio.run(generator.run(args.warmup))


def _run_offline(args: argparse.Namespace, arguments: dict[str, Any], plan: Plan) -> Row:
    from runtime.bench.load import offline
    from runtime.bench.progress import announce

    announce("the same requests without HTTP")
    found = offline.measure(arguments, plan, _target(args, "http://127.0.0.1"), args.seed)
    return {"offline_s": round(found["s"], 4), "offline_tok_s": round(found["output_tokens"] / found["s"], 1)}


def _row(args: argparse.Namespace, plan: Plan, run: LoadRun, offline: Row | None) -> Row:
    from runtime.bench.load.figures import Slo, figures

    head: Row = {"engine": run.engine, "model": run.model}
    if args.spawn is not None:
        head["tp"] = args.tensor_parallel_size
    lengths = plan.mean_lengths() if not args.scenario else {"batch": len(plan.requests)}
    closed = {} if plan.concurrency is None else {"concurrency": plan.concurrency}
    asked = {"endpoint": args.endpoint, **lengths, **plan.arrivals, **closed}
    row = {**head, "scenario": plan.scenario, **asked, **figures(run, Slo(args.slo_ttft, args.slo_itl))}
    if offline is not None:
        pct = round(100 * row["tok_s"] / offline["offline_tok_s"], 1)
        row |= {**offline, "pct_of_offline": pct}
    return row


def _report(run: LoadRun) -> None:
    """What a reader of the row must know; an error where nothing was served."""
    from runtime.bench.load.figures import BUSY_PCT
    from runtime.bench.load.generator import require_success

    busy_pct = 100 * run.cpu_s / run.seconds
    if busy_pct > BUSY_PCT:
        print(
            f"runtime: the load generator itself took {busy_pct:.0f} % of a core, and its delays are in the figures "
            f"(below {BUSY_PCT:.0f} % is sound; several generators at a lower rate each)",
            file=sys.stderr,
        )
    require_success(run)


# ---- what was asked ------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    _require_packages()
    if (args.base_url is None) == (args.spawn is None):
        raise ConfigError("exactly one of --base-url URL and --spawn [MODEL] is needed")
    if args.offline_pair and (args.spawn is None or args.endpoint == "chat" or args.trace):
        raise ConfigError("--offline-pair needs --spawn, --endpoint completions and no --trace")
    if args.endpoint not in _ENDPOINTS:
        raise ConfigError(f"--endpoint={args.endpoint}: must be one of {', '.join(_ENDPOINTS)}{_near(args.endpoint)}")
    for name in ("concurrency", "num_requests", "input_len", "output_len", "vocab_size"):
        _require(name, getattr(args, name), 1)
    _require("warmup", args.warmup, 0)
    _require("seed", args.seed, 0)
    for name in ("rate", "duration", "timeout", "start_timeout", "slo_ttft", "slo_itl"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{_flag(name)}={value:g}: must be above 0; nearest: {_NEAREST.get(name, 1)}")
    for name in ("cv", "temperature"):
        _require(name, getattr(args, name), 0)
    _check_load(args)


_NEAREST = {"rate": 0.01, "duration": 0.1}


def _check_load(args: argparse.Namespace) -> None:
    if args.trace and args.scenario:
        raise ConfigError("--trace and --scenario both say what is asked: give one of them")
    source = "trace" if args.trace else "scenario"
    of_its_own = ("input_len", "output_len", *(("rate", "duration") if args.trace else ("num_requests", "duration")))
    for name in of_its_own:
        if (args.trace or args.scenario) and getattr(args, name) is not None:
            raise ConfigError(f"{_flag(name)}: a {source} says that itself")
    if args.rate == math.inf and args.duration is not None:
        raise ConfigError("--rate=inf sends all at once, and --duration has no meaning then", hint="--num-requests N")
    if args.trace or args.scenario or args.rate is not None or args.concurrency is not None:
        return
    if not args.offline_pair:
        raise ConfigError("no load: give --rate R, --concurrency N, --trace FILE or --scenario NAME")


def _plan(args: argparse.Namespace) -> Plan:
    from runtime.bench.load.plan import Arrivals, plan_of_lengths, plan_of_scenario, plan_of_trace

    if args.trace:
        return plan_of_trace(args.trace, args.num_requests, args.concurrency, args.temperature or 0.0)
    all_at_once = args.concurrency is None  # where nothing else says when
    rate = args.rate if args.rate is not None or not all_at_once else math.inf
    count = args.num_requests
    if count is None and args.duration is None and not args.scenario:
        count = _DEFAULT_REQUESTS
    arrivals = Arrivals(rate, args.cv, count, args.duration, args.seed)
    if args.scenario:
        return plan_of_scenario(args.scenario, arrivals, args.concurrency, args.temperature)
    lengths = args.input_len or _DEFAULT_LEN, args.output_len or _DEFAULT_LEN
    return plan_of_lengths(arrivals, args.concurrency, *lengths, args.temperature or 0.0)


def _engine(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Arguments of the engine that is spawned: those of a scenario, where nothing else is said."""
    given = given_engine_arguments(args)
    if args.scenario:
        given = {**plan.engine_arguments(), **given}
    return {"model": args.spawn or None, **given}


def _target(args: argparse.Namespace, url: str) -> Target:
    from runtime.bench.load.generator import Target
    from runtime.bench.load.http_client import Url

    key = os.environ.get(args.api_key_env, "")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ConfigError(f"{args.api_key_env}: an API key has printable ASCII characters alone, no spaces")
    return Target(
        Url.parse(url),
        endpoint=args.endpoint,
        model=args.model_name,
        headers={"authorization": f"Bearer {key}"} if key else {},
        ignore_eos=args.ignore_eos or bool(args.scenario),
        continuous_usage=args.chunk_usage,
        vocab_size=args.vocab_size,
        timeout_s=args.timeout,
    )


def device_of(args: argparse.Namespace) -> str | None:
    """Of a server on this machine: "cpu" or "cuda", where it was said; None: what an engine takes by itself."""
    return None if args.spawn is None or args.device == "auto" else str(args.device)


def is_remote(args: argparse.Namespace) -> bool:
    """Whether the server runs on a machine of which nothing is known."""
    from runtime.bench.load.http_client import Url

    return args.spawn is None and Url.parse(args.base_url).host not in ("localhost", "127.0.0.1", "::1")


def _require(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise ConfigError(f"{_flag(name)}={value:g}: must be at least {least}; nearest: {least}")


def _flag(name: str) -> str:
    return f"--{name.removesuffix('_len').removesuffix('put').replace('_', '-')}"


def _near(name: str) -> str:
    return did_you_mean(name, _ENDPOINTS)


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"bench serve needs {' and '.join(missing)}", hint="pip install 'runtime-llm[server]'")
