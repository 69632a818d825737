"""What the server and its engine say to each other: msgpack, each message behind its length."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from runtime import errors
from runtime.errors import EngineDeadError, Error, InvalidRequestError, ModelFormatError

HEADER = struct.Struct("<I")


class _Message(msgspec.Struct, array_like=True, tag=True):
    """Written as an array that begins with the class's name."""


# ---- to the engine --------------------------------------------------------------------------


class Start(_Message):
    """The first message: the arguments of `EngineConfig`, by name."""

    arguments: dict[str, Any]


class Submit(_Message):
    """A request. `id` is the sender's, never used twice.

    Args:
        prompt_token_ids: int32, native order.
        params: arguments of `SamplingParams`.
        options: arguments of `SubmitOptions`.
        generate: False: the prompt is scored, by `prompt_logprobs` of its params, and nothing else.
    """

    id: int
    prompt_token_ids: bytes
    params: dict[str, Any]
    options: dict[str, Any]
    generate: bool = True


class Abort(_Message):
    id: int


class Ack(_Message):
    """An `Outputs` was passed on: the next one may come."""


class Query(_Message):
    """Asks for an `Answer`. `subject`: "stats" may wait for the step that runs, "health" waits for nothing."""

    id: int
    subject: str


class Drain(_Message):
    """No request is left and none will come: the engine ends."""


ToEngine = Start | Submit | Abort | Ack | Query | Drain


# ---- from the engine ------------------------------------------------------------------------


class Info(_Message):
    """The engine is ready. `startup`: seconds of each phase of its start, a dict a rank."""

    max_model_len: int
    vocab_size: int
    device: str
    dtype: str
    step_timeout_s: float
    block_size: int
    num_blocks: int
    startup: list[dict[str, float]]


class WireError(msgspec.Struct, array_like=True, frozen=True):
    """An `Error`, by its class."""

    kind: str
    message: str
    hint: str = ""
    param: str = ""


class Failed(_Message):
    """The engine did not start, or has stopped. The last message."""

    error: WireError


class Candidate(msgspec.Struct, array_like=True, frozen=True):
    """A token at a position. `rank` counts from 1; None: not among the likeliest that were asked for."""

    token_id: int
    logprob: float
    rank: int | None
    text: str


class Metrics(msgspec.Struct, array_like=True, frozen=True):
    """As `runtime.outputs.RequestMetrics`."""

    queue_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int


class Accepted(_Message):
    """The request is queued."""

    id: int


class Scored(_Message):
    """Candidates of each prompt token; none at the first one."""

    id: int
    positions: list[list[Candidate]]


class Delta(_Message):
    """What completion `index` brought since its last Delta; `logprobs` has the candidates of each of `token_ids`."""

    id: int
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[list[Candidate]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Ended(_Message):
    """The request's last event, unless that is a Refused."""

    id: int
    metrics: Metrics


class Refused(_Message):
    """The request's last event: it was not accepted, or failed."""

    id: int
    error: WireError


Event = Accepted | Scored | Delta | Ended | Refused


class Outputs(_Message):
    events: list[Event]


class Answer(_Message):
    id: int
    value: dict[str, Any]


FromEngine = Info | Failed | Outputs | Answer

_encoder = msgspec.msgpack.Encoder()
to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """A message behind its length: 4 bytes, little end first."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


_BY_NAME: dict[str, type[Error]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Error)
}


def to_wire(error: BaseException) -> WireError:
    """What is not one of ours is named, so that nothing of its text reaches a client."""
    if isinstance(error, InvalidRequestError):
        return WireError(type(error).__name__, error.message, error.hint, error.param)
    if isinstance(error, EngineDeadError):
        return WireError(type(error).__name__, error.message.removeprefix("the engine has stopped: "), error.hint)
    if isinstance(error, Error):
        return WireError(type(error).__name__, error.message, error.hint)
    return WireError("Error", f"an internal error ended the request: {type(error).__name__}")


def from_wire(found: WireError) -> Error:
    kind = _BY_NAME.get(found.kind, Error)
    if kind is InvalidRequestError:
        return InvalidRequestError(found.param, message=found.message, hint=found.hint)
    if kind is EngineDeadError:
        return EngineDeadError(found.message, hint=found.hint)
    if kind is ModelFormatError:
        return ModelFormatError(found.message.split("\n"), hint=found.hint)
    return kind(found.message, hint=found.hint)
