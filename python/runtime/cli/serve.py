"""Serve a model over HTTP, with OpenAI's API and a page at /."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_engine_arguments, add_model_argument, argument_helps, type_of
from runtime.cli.settings import Setting, Settings, as_toml
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from runtime.server.config import ServerConfig

_PACKAGES = ("starlette", "uvicorn", "msgspec", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from runtime.server.config import ServerConfig

    add_model_argument(parser)
    parser.add_argument("--config", metavar="FILE", help="TOML with a table [serve]; flags and RUNTIME_<FLAG> go first")
    parser.add_argument("--dry-run", action="store_true", help="check everything and plan the memory, but do not serve")
    parser.add_argument("--print-config", action="store_true", help="print every setting and where it comes from")
    parser.add_argument("--seed", type=int, default=0, help="base of the seeds of requests that bring none")
    group = parser.add_argument_group("server")
    helps = argument_helps(ServerConfig.__doc__ or "")
    for field in dataclasses.fields(ServerConfig):
        flag, text, kind = f"--{field.name.replace('_', '-')}", helps[field.name], str(field.type)
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        elif kind.startswith("Sequence"):
            group.add_argument(flag, action="append", help=f"{text}; may be repeated")
        else:
            group.add_argument(flag, type=type_of(kind), default=field.default, help=text)
    add_engine_arguments(parser)
    Settings(parser, "serve")


def run(args: argparse.Namespace) -> int:
    settings: dict[str, Setting] = args.settings.resolve(args, os.environ)
    if getattr(args, "print_config", False):
        print(as_toml("serve", _masked(settings)))
        return 0
    _require_packages()
    server, engine = split(settings)
    _log(server, engine)
    if getattr(args, "dry_run", False):
        return _dry_run(server, engine)
    from runtime.server.run import run as serve

    return serve(server, engine)


def split(settings: Mapping[str, Setting]) -> tuple[ServerConfig, dict[str, Any]]:
    """The server's configuration, and the arguments of the engine's."""
    from runtime.config import EngineConfig
    from runtime.server.config import ServerConfig

    own = {field.name for field in dataclasses.fields(ServerConfig)}
    lists = {field.name for field in dataclasses.fields(ServerConfig) if field.default == ()}
    given = {name: setting.value for name, setting in settings.items()}
    arguments: dict[str, Any] = {name: given[name] for name in own}
    arguments |= {name: arguments[name] or () for name in lists}
    server = ServerConfig(**arguments)
    engine = {name: value for name, value in given.items() if name not in own}
    EngineConfig.from_arguments(engine)
    return server, engine


def _masked(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Without secrets."""
    keys = settings["api_key"]
    hidden = None if keys.value is None else ["***"] * len(keys.value)
    return {**settings, "api_key": Setting(hidden, keys.source)}


def _log(server: ServerConfig, engine: Mapping[str, Any]) -> None:
    from runtime.server.log_format import set_up_logging

    set_up_logging(engine.get("log_level") or "warning", as_json=server.log_format == "json")


def _dry_run(server: ServerConfig, engine: dict[str, Any]) -> int:
    from runtime.cli.inspect import plan_lines
    from runtime.config import EngineConfig
    from runtime.llm import LLM
    from runtime.server.run import bind, model_name

    config = EngineConfig.from_arguments(engine)
    with bind(server) as listener:
        host, port = listener.getsockname()[:2]
    print(f"would serve {model_name(server, config)} at {host} port {port}")
    print(*plan_lines(LLM.plan(**engine).as_dict()), sep="\n")
    return 0


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serve needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint="pip install 'runtime-llm[server]'",
        )
