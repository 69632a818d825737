"""Engines that can be measured: this one, and peers that the user has installed.

Each is an adapter of one module, imported when it is chosen: the same prompts go in, the times of tokens come out, and
`runtime.bench.figures` makes the same figures of them. An adapter imports its engine when it is opened.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from runtime.bench.scenarios import Request, prompts_of
from runtime.config import BUILTIN_MODEL
from runtime.errors import ConfigError, did_you_mean
from runtime.loader import check_model_folder, read_config

# name -> (module, class)
_ADAPTERS = {
    "runtime": ("own", "OwnEngine"),
    "transformers": ("hugging_face", "TransformersEngine"),
    "vllm": ("vllm_engine", "VllmEngine"),
}
ENGINES = tuple(_ADAPTERS)


@dataclass(frozen=True)
class TimedRequest:
    """What an engine is asked: greedy or sampled, never ended by a token.

    Args:
        arrival_s: when it is sent, from the start of the run; None: at once.
    """

    prompt_token_ids: list[int]
    output_len: int
    arrival_s: float | None = None


@dataclass(frozen=True)
class RequestTimes:
    """When the tokens of a request came, in seconds from the start of the run.

    Args:
        sent_s: when it was given to the engine.
        due_s: what TTFT counts from: when it was to be sent in an open loop, else `sent_s`.
        first_s: of the first token; None: the engine does not say.
        last_s: of the last token.
        token_s: of every token; empty where they were not asked for.
        scheduled_s: when a step first took it; None: the engine does not say.
    """

    sent_s: float
    due_s: float
    first_s: float | None
    last_s: float
    token_s: Sequence[float] = ()
    scheduled_s: float | None = None


class BenchEngine(Protocol):
    """An engine that holds a model.

    `ARGUMENTS` are those of `runtime.config.EngineConfig` that it understands. `versions` are of the packages that are
    the engine. `settings` bound its scheduler, where a simulation of it can use them.
    """

    ARGUMENTS: ClassVar[frozenset[str]]

    model_dir: Path
    tensor_parallel_size: int
    device: str  # "cpu" or "cuda"
    dtype: str

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that are the engine, by name."""

    @property
    def settings(self) -> Mapping[str, int]:
        """Limits of its scheduler under the names of `runtime.simulation.Settings`; {}: not known."""

    def run(
        self, requests: Sequence[TimedRequest], temperature: float = 0.0, *, every_token: bool = False
    ) -> list[RequestTimes]:
        """Serves the requests, with nothing cached from before; in their order.

        Args:
            every_token: also the time of every token, where that costs something.
        """
        ...

    def close(self) -> None:
        """Ends it and frees the device."""


def open_engine(name: str, model: str | None, arguments: Mapping[str, Any], **options: Any) -> BenchEngine:
    """Loads a model into an engine.

    Args:
        model: folder of a checkpoint; None: the built-in model.
        arguments: of `EngineConfig`, those that are not defaults.
        options: what only the runtime's own adapter takes.

    Raises:
        ConfigError: an unknown engine, one that is not installed, or an argument that it does not have.
    """
    adapter = _adapter(name)
    for argument in arguments:
        if argument not in adapter.ARGUMENTS:
            known = ", ".join(map(_flag, sorted(adapter.ARGUMENTS)))
            raise ConfigError(f"{_flag(argument)} is not for --engine {name}", hint=f"which takes {known}")
    folder = BUILTIN_MODEL if model is None else check_model_folder(model)
    engine: BenchEngine = adapter(folder, arguments, **options)
    return engine


def timed_requests(engine: BenchEngine, requests: Sequence[Request]) -> list[TimedRequest]:
    """With prompts; all engines get the same token ids for a model."""
    prompts = prompts_of(requests, int(read_config(engine.model_dir)["vocab_size"]))
    return [TimedRequest(prompt, one.output_len, one.arrival_s) for prompt, one in zip(prompts, requests)]


def import_peer(module: str, pip_name: str) -> Any:
    """A package that only users of this peer have.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise ConfigError(f"--engine {module}: it is installed, but lacks {error.name}", hint=str(error)) from None
        raise ConfigError(f"--engine {module}: it is not installed", hint=f"pip install {pip_name}") from None


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions by package."""
    return {name: importlib.metadata.version(name) for name in packages}


def sleep_until(moment: float) -> None:
    """Until `time.perf_counter()` says so."""
    time.sleep(max(0.0, moment - time.perf_counter()))


def _adapter(name: str) -> Any:
    if name not in _ADAPTERS:
        raise ConfigError(f"--engine={name}: unknown engine{did_you_mean(name, ENGINES)}", hint=", ".join(ENGINES))
    module, adapter = _ADAPTERS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), adapter)


def _flag(argument: str) -> str:
    return f"--{argument.replace('_', '-')}"
