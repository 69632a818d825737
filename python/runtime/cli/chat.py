"""Talk to a model; /help lists what else can be typed, Ctrl-C stops an answer, Ctrl-D ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.generate import speed_line, stats_as_json
from runtime.cli.parser import (
    add_engine_arguments,
    add_model_argument,
    add_sampling_arguments,
    engine_arguments,
    sampling_params,
)
from runtime.errors import EngineDeadError, Error, InvalidRequestError, did_you_mean

if TYPE_CHECKING:
    from runtime.llm import LLM
    from runtime.outputs import RequestOutput
    from runtime.sampling_params import SamplingParams

_COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/params": "show the sampling parameters, or change them: /params temperature=0.7 max_tokens=64",
    "/stats": "speed of the last answer and the scheduler's counts",
    "/exit": "end",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    from runtime.llm import LLM

    with LLM(args.model, **engine_arguments(args)) as llm:
        Conversation(llm, params, args.system).run()
    return 0


class Conversation:
    """The loop between a user and a model."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._system)
        self._last: RequestOutput | None = None

    def run(self) -> None:
        while True:
            line = self._read_line()
            if line is None or line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._answer(line)
            except EngineDeadError:
                raise
            except Error as error:
                print(f"runtime: {error}", file=sys.stderr)

    def _read_line(self) -> str | None:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise InvalidRequestError("message", message=f"standard input is not text: {error}") from None

    def _answer(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        _, token_ids = self._llm.encode_chat(messages)
        handle = self._llm.submit(token_ids, self._params)
        try:
            for chunk in handle:
                print(chunk.delta, end="", flush=True)
        except KeyboardInterrupt:
            handle.abort()
        print(flush=True)
        self._last = handle.result()
        self._messages = [*messages, {"role": "assistant", "content": self._last.outputs[0].text}]

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in _COMMANDS:
            raise InvalidRequestError(
                "command", name, message=f"unknown command {name!r}{did_you_mean(name, _COMMANDS)}"
            )
        if name == "/help":
            print("\n".join(f"{command:8} {what}" for command, what in _COMMANDS.items()))
        elif name == "/reset":
            self._messages = list(self._system)
        elif name == "/params":
            self._change_params(rest)
        elif name == "/stats":
            self._print_stats()

    def _change_params(self, text: str) -> None:
        changes = dict(_assignment(word) for word in text.split())
        if changes:
            current = {f.name: getattr(self._params, f.name) for f in dataclasses.fields(self._params) if f.init}
            self._params = type(self._params)(**{**current, **changes})
        print(self._params)

    def _print_stats(self) -> None:
        if self._last is not None:
            print(speed_line([self._last]))
        print(json.dumps(stats_as_json(self._llm.stats)))


def _assignment(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise InvalidRequestError("params", word, message=f"{word!r}: write name=value, such as temperature=0.7")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
