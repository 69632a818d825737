"""`runtime VERB ...`: finds the verb's module, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from runtime.cli.parser import ArgumentParser
from runtime.errors import (
    CapacityError,
    ConfigError,
    DeviceNotFoundError,
    EngineDeadError,
    Error,
    InvalidRequestError,
    ModelFormatError,
    ModelNotFoundError,
    did_you_mean,
)

VERBS = {
    "generate": "complete a prompt",
    "chat": "talk to a model",
    "serve": "serve a model over HTTP",
    "inspect": "describe a model folder and check it",
    "doctor": "check this machine",
    "bench": "measure this engine beside others, or its parts",
    "simulate": "serve made-up requests in virtual time",
    "convert": "make safetensors of a model folder",
    "completion": "print a shell's completion script",
    "version": "print versions",
}

EXIT_USAGE, EXIT_BAD_MODEL, EXIT_NO_DEVICE, EXIT_ENGINE_DIED, EXIT_INTERRUPTED = 2, 65, 69, 70, 130
_EXIT_BROKEN_PIPE = 141

# the first class that fits counts
_EXIT_CODES: tuple[tuple[type[Error], int], ...] = (
    (DeviceNotFoundError, EXIT_NO_DEVICE),
    (CapacityError, EXIT_NO_DEVICE),
    (ConfigError, EXIT_USAGE),
    (InvalidRequestError, EXIT_USAGE),
    (ModelNotFoundError, EXIT_BAD_MODEL),
    (ModelFormatError, EXIT_BAD_MODEL),
    (EngineDeadError, EXIT_ENGINE_DIED),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except Error as error:
        print(f"runtime: {error}", file=sys.stderr)
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_ENGINE_DIED)
    except KeyboardInterrupt:
        print("runtime: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail too
        return _EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is None:  # not of a file that somebody named
            raise
        print(f"runtime: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USAGE
    verb = {"--version": "version"}.get(arguments[0], arguments[0])
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}", hint="`runtime --help` lists all")
    module = importlib.import_module(f"runtime.cli.{verb}")
    parser = ArgumentParser(prog=f"runtime {verb}", description=module.__doc__)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments[1:])))


def _usage() -> str:
    lines = [f"  {verb:10} {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: runtime VERB [MODEL] ...", "", *lines, "", "Without MODEL the built-in model is used."])


if __name__ == "__main__":
    sys.exit(main())
