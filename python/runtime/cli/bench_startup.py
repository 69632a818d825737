"""`runtime bench startup`: from a process's first moment to ready, phase by phase."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.cli.parser import add_engine_arguments, given_engine_arguments
from runtime.config import EngineConfig
from runtime.errors import ConfigError, did_you_mean
from runtime.loader import check_model_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="folder of a checkpoint; default: the built-in model")
    parser.add_argument(
        "--kernel-cache",
        default="warm",
        metavar="STATE",
        help="cold: empty; warm: filled by a start before; both; keep: this machine's as it is",
    )
    parser.add_argument("--http", action="store_true", help="`runtime serve` up to its first answer")
    add_engine_arguments(parser)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a start, without environment."""
    from runtime.bench import startup

    if args.kernel_cache not in startup.CACHES:
        near = did_you_mean(args.kernel_cache, startup.CACHES)
        raise ConfigError(f"--kernel-cache={args.kernel_cache}: must be one of {', '.join(startup.CACHES)}{near}")
    given = {"model": args.model, **given_engine_arguments(args)}
    EngineConfig.from_arguments(given)  # what is wrong is said before a process is started
    if args.model is not None:
        check_model_folder(args.model)
    model = Path(args.model).resolve().name if args.model else "builtin"
    for row in startup.measure(given, cache=args.kernel_cache, serves=args.http):
        scenario = f"startup_{'http_' if args.http else ''}{row['kernel_cache']}"
        yield {"engine": "runtime", "model": model, "tp": args.tensor_parallel_size, "scenario": scenario, **row}
