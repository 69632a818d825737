"""Arguments: engine and sampling flags from the fields of their classes, unknown flags with the nearest names."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from runtime.config import EngineConfig
from runtime.errors import did_you_mean

if TYPE_CHECKING:
    from runtime.sampling_params import SamplingParams

# set by a verb itself, or meaningless on a command line
_NO_ENGINE_FLAGS = ("model", "seed", "max_queued_requests")
# name: (type, default, help); everything else keeps SamplingParams' default
_SAMPLING_FLAGS: dict[str, tuple[type, Any, str]] = {
    "max_tokens": (int, 128, "most tokens of output"),
    "temperature": (float, 0.0, "0: greedy"),
    "top_p": (float, None, "keep the likeliest tokens that together have this probability"),
    "top_k": (int, None, "keep this many tokens"),
    "min_p": (float, None, "keep tokens with this share of the likeliest one's probability"),
    "presence_penalty": (float, None, "taken off the logits of tokens in the output"),
    "frequency_penalty": (float, None, "likewise, for each occurrence"),
    "repetition_penalty": (float, None, "divides the logits of tokens in prompt and output"),
    "seed": (int, None, "the same seed gives the same output"),
    "min_tokens": (int, None, "no end before this many tokens"),
    "logprobs": (int, None, "top logprobs at each token, in the JSON output"),
}


class ArgumentParser(argparse.ArgumentParser):
    """Refuses what it does not know in one sentence, with the nearest names.

    `default_verb` is the verb of a command line that begins with a flag, where a parser has verbs of its own.
    """

    default_verb: str | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        if self.default_verb and given and given[0].startswith("-") and given[0] not in ("-h", "--help"):
            given.insert(0, self.default_verb)
        found, unknown = self.parse_known_args(given, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            kind = "flag" if flag.startswith("-") else "argument"
            self.error(f"unknown {kind} {flag!r}{did_you_mean(flag, self._flags(found))}")
        return found

    def _flags(self, found: argparse.Namespace) -> list[str]:
        """All that could be given, those of the chosen subcommand included."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += action.choices[getattr(found, action.dest)]._option_string_actions
        return flags

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder of a checkpoint; default: the built-in model")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each argument of the engine; values are checked by EngineConfig."""
    group = parser.add_argument_group("engine")
    helps = argument_helps(EngineConfig.__doc__ or "")
    for field in dataclasses.fields(EngineConfig):
        if field.name in _NO_ENGINE_FLAGS:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", helps.get(field.name, " ")
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            group.add_argument(flag, type=type_of(str(field.type)), default=field.default, help=text)


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `LLM` in a parsed command line."""
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    return {name: getattr(args, name) for name in names if hasattr(args, name) and name not in _NO_ENGINE_FLAGS}


def given_engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Those of them that are not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    return {name: value for name, value in engine_arguments(args).items() if value != defaults[name]}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    for name, (kind, default, text) in _SAMPLING_FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    group.add_argument("--stop", action="append", help="a string that ends the output; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="end-of-sequence tokens do not end the output")


def add_repeated_tile_share(parser: argparse._ActionsContainer) -> None:
    """For step times that are fitted to a run."""
    parser.add_argument(
        "--repeated-tile-share",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="time of KV that several rows of a step read, against KV that one reads; python -m runtime.bench.kernels"
        " measures it",
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    from runtime.sampling_params import SamplingParams

    given = {name: getattr(args, name) for name in _SAMPLING_FLAGS if getattr(args, name) is not None}
    return SamplingParams(**given, stop=args.stop, ignore_eos=args.ignore_eos)


def type_of(annotation: str) -> type:
    return int if annotation.startswith("int") else float if annotation.startswith("float") else str


def argument_helps(docstring: str) -> dict[str, str]:
    """Name -> first sentence of the docstring's Args section; "a, b: ..." serves both."""
    found: dict[str, str] = {}
    for names, text in re.findall(r"^        (\w+(?:, \w+)*): (.+(?:\n            .+)*)", docstring, re.MULTILINE):
        sentence = re.sub(r"\s+", " ", text).rstrip(".").replace("%", "%%")
        found.update(_each(names.split(", "), sentence))
    return found


def _each(names: Iterable[str], text: str) -> dict[str, str]:
    return {name: text for name in names}
