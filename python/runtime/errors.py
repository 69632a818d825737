"""Every error a caller can meet.

Each derives from Python's own closest class, so `except ValueError` works too. `code` is stable and meant for
programs; `hint` says in one sentence what to do about it, or is empty.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

_MAX_SHOWN = 80  # characters of a refused value that a message repeats


def shorten(value: object) -> str:
    """`repr(value)`, cut to what one line can hold."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the up to three nearest of `known`, or ""."""
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


class Error(Exception):
    """Base of all; `str()` is the whole sentence, the hint included."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(Error, ValueError):
    """An argument of `LLM`, or of a model class, that cannot work."""

    code = "config_error"


class DeviceNotFoundError(ConfigError):
    """The device that was asked for is not there."""

    code = "device_not_found"


class ModelNotFoundError(Error, FileNotFoundError):
    """No model folder at the given path."""

    code = "model_not_found"


class ModelFormatError(Error, ValueError):
    """A model folder whose files are wrong. `problems` holds all of them, in the words of the checkpoint."""

    code = "model_format_error"

    def __init__(self, problems: str | Sequence[str], *, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class InvalidRequestError(Error, ValueError):
    """One field of one request is refused.

    Args:
        param: name of the field.
        value: what was given.
        limit: what is allowed, as a phrase that follows "must be".
        suggestion: nearest value that works, or None.
        message: the sentence, where "must be" does not say it.
    """

    code = "invalid_request"

    def __init__(
        self,
        param: str,
        value: object = None,
        limit: str = "",
        suggestion: object = None,
        *,
        message: str | None = None,
        hint: str = "",
    ) -> None:
        self.param = param
        self.value = value
        self.limit = limit
        self.suggestion = suggestion
        if message is None:
            message = f"{param}={shorten(value)}: must be {limit}"
            if suggestion is not None:
                message += f"; nearest: {suggestion}"
        super().__init__(message, hint=hint)


def prompt_too_long(num_tokens: int | str, max_tokens: int) -> InvalidRequestError:
    """The refusal of a prompt with so many tokens."""
    message = f"prompt_ids=a prompt of {num_tokens} tokens: must be at most {max_tokens} tokens"
    return InvalidRequestError("prompt_ids", message=message, hint=f"max_model_len is {max_tokens + 1}")


class CapacityError(Error, RuntimeError):
    """The request, the queue or the model does not fit into what this engine was given."""

    code = "capacity_exceeded"


class CommunicatorError(Error, RuntimeError):
    """A rank of a tensor-parallel group died, left, did not come in time or makes another call; the group has ended."""

    code = "communicator_failed"


def for_this_caller(error: BaseException) -> BaseException:
    """A copy of an error that several callers get: one object raised in several threads would mix their tracebacks."""
    if not isinstance(error, Error):
        return error
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args, copy.__cause__ = error.args, error.__cause__
    return copy


class EngineDeadError(Error, RuntimeError):
    """A step failed; the engine has stopped and every waiting caller gets this.

    Args:
        cause: the exception that ended it, or a sentence.
        report_path: file with details, or None.
    """

    code = "engine_dead"

    def __init__(self, cause: BaseException | str, report_path: str | None = None, *, hint: str = "") -> None:
        self.cause = cause
        self.report_path = report_path
        text = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        super().__init__(
            f"the engine has stopped: {text}", hint=hint or (f"report: {report_path}" if report_path else "")
        )
        if isinstance(cause, BaseException):
            self.__cause__ = cause


class RequestAborted(Error, RuntimeError):
    """The request was aborted before it finished."""

    code = "request_aborted"


class DeadlineExceeded(Error, TimeoutError):
    """The request did not finish in the time it was given."""

    code = "deadline_exceeded"
