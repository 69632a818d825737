"""Arguments: engine and sampling flags from the fields of their classes, unknown flags with the nearest names."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from runtime.config import EngineConfig
from runtime.errors import did_you_mean, shorten

if TYPE_CHECKING:
    from runtime.sampling_params import SamplingParams

# set by a verb itself, or meaningless on a command line
_NO_ENGINE_FLAGS = ("model", "seed", "max_queued_requests")
# by the name of an argument's type, what its values are
_KINDS = {"int": "an integer", "float": "a number", "num_bytes": "a number of bytes, such as 80GiB"}
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
    "prompt_logprobs": (int, None, "likewise, at each token of the prompt"),
}


class ArgumentParser(argparse.ArgumentParser):
    """Refuses what it does not know in one sentence, with the nearest names.

    `default_verb` is the verb of a command line that begins with a flag, where a parser has verbs of its own.
    """

    default_verb: str | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse; a flag or argument that nobody knows is refused by the verb that was chosen."""
        given = list(sys.argv[1:] if args is None else args)
        if self.default_verb and given and given[0].startswith("-") and given[0] not in ("-h", "--help"):
            given.insert(0, self.default_verb)
        found, unknown = self.parse_known_args(given, namespace)
        if unknown:
            self._chosen(found)._refuse_unknown(unknown[0].split("=")[0])
        return found

    def _chosen(self, found: argparse.Namespace) -> ArgumentParser:
        """The parser of the verb that a command line has chosen of this one's; itself where it has none."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen: ArgumentParser = action.choices[getattr(found, action.dest)]
                return chosen
        return self

    def _refuse_unknown(self, name: str) -> NoReturn:
        kind = "flag" if name.startswith("-") else "argument"
        self.error(f"unknown {kind} {name!r}{did_you_mean(name, self._option_string_actions)}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """In our words; argparse's sentence names the Python type."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            raise _refusal(action, arg_string, kind_of(action.type)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Likewise: with the nearest of the choices."""
        choices = action.choices
        if choices is None or value in choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"unknown verb {value!r}{did_you_mean(value, choices)}")
        raise _refusal(action, value, f"one of {', '.join(choices)}{did_you_mean(value, choices)}")

    def error(self, message: str) -> NoReturn:
        """Ends the process with 2 and the sentence; so do all refusals of a command line."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _refusal(action: argparse.Action, value: str, limit: str) -> argparse.ArgumentError:
    name = action.option_strings[-1] if action.option_strings else action.dest
    return argparse.ArgumentError(None, f"{name}={shorten(value)}: must be {limit}")


def kind_of(kind: object) -> str:
    """What a value that a type does not take must be, in words."""
    return _KINDS.get(getattr(kind, "__name__", ""), "another value")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, the folder that a verb is about; `args.model` is None for the built-in model."""
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
    """Flags for how tokens are chosen; their values are checked by SamplingParams."""
    group = parser.add_argument_group("sampling")
    for name, (kind, default, text) in _SAMPLING_FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    group.add_argument("--stop", action="append", help="a string that ends the output; may be repeated")
    group.add_argument("--bad-words", action="append", help="a text that the output must not contain; may be repeated")
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
    """From a parsed command line; InvalidRequestError for a value that cannot be."""
    from runtime.sampling_params import SamplingParams

    given = {name: getattr(args, name) for name in _SAMPLING_FLAGS if getattr(args, name) is not None}
    return SamplingParams(**given, stop=args.stop, bad_words=args.bad_words, ignore_eos=args.ignore_eos)


def type_of(annotation: str) -> type:
    """int, float or str for the annotation of a field, such as "int | None"."""
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
