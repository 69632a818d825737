"""Requests of OpenAI's API, checked and translated: what is known, what is refused by name, what is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from runtime.engine.submission import SubmitOptions
from runtime.errors import InvalidRequestError, shorten
from runtime.sampling_params import SamplingParams
from runtime.server.output_form import output_form

# passed on to SamplingParams under the same name, which checks them
SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "max_tokens",
    "min_tokens",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "include_stop_str_in_output",
)
_OPTION_FIELDS = ("priority", "tenant", "deadline_s", "cache_salt")
_OPTION_HEADERS = {"x-priority": "priority", "x-tenant": "tenant"}

_INTEGERS = frozenset(
    "n top_k seed max_tokens max_completion_tokens min_tokens logprobs top_logprobs prompt_logprobs priority".split()
)

# without effect on the answer
_HARMLESS = frozenset(
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options parallel_tool_calls "
    "return_tokens_as_token_ids request_id".split()
)
# known, and refused unless the value asks for nothing, which null never does, or the endpoint has such a field
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_INSTEAD = {"functions": "use tools", "function_call": "use tool_choice"}

Flag = bool | None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: Flag = None
    continuous_usage_stats: Flag = None  # vLLM's: every chunk has the usage so far


class Common(msgspec.Struct, kw_only=True):
    """The fields of both endpoints; numbers are checked by SamplingParams alone."""

    model: str | None = None
    stream: Flag = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None


class CompletionBody(Common, kw_only=True):
    prompt: Any = None
    echo: Flag = None
    logprobs: Any = None
    prompt_logprobs: Any = None


class ChatBody(Common, kw_only=True):
    messages: Any = None
    logprobs: Flag = None
    top_logprobs: Any = None
    max_completion_tokens: Any = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Flag = None


Body = TypeVar("Body", bound=Common)


@dataclass(frozen=True)
class Parsed:
    """What both endpoints take from a body, beside its own fields."""

    params: SamplingParams
    options: SubmitOptions
    ignored: list[str]  # names of unknown fields
    has_own_deadline: bool


def read_body(found: Mapping[str, Any], kind: type[Body]) -> tuple[Body, dict[str, Any], list[str]]:
    """(typed fields, sampling fields and options, names of unknown fields); null is as good as absent.

    Raises:
        InvalidRequestError: a field of a wrong type, or one that is known but not supported.
    """
    given = {name: _as_integer(name, value) for name, value in found.items() if value is not None}
    for name, nothing in _UNSUPPORTED.items():
        is_refused = name in given and name not in kind.__struct_fields__
        if is_refused and not any(given[name] == value for value in nothing):
            raise InvalidRequestError(name, message=f"{name} is not supported; {_INSTEAD.get(name, 'leave it out')}")
    own = {name: given.pop(name) for name in kind.__struct_fields__ if name in given}
    try:
        body = msgspec.convert(own, kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    passed = {name: given.pop(name) for name in (*SAMPLING_FIELDS, *_OPTION_FIELDS) if name in given}
    unknown = [name for name in given if name not in _HARMLESS and name not in _UNSUPPORTED]
    return body, passed, unknown


def parse(
    body: Common,
    passed: dict[str, Any],
    ignored: list[str],
    headers: Mapping[str, str],
    request_timeout_s: float | None,
    **sampling: Any,
) -> Parsed:
    """Builds what the engine takes; `sampling` goes before what was passed."""
    options = {name: passed.pop(name) for name in _OPTION_FIELDS if name in passed}
    for header, name in _OPTION_HEADERS.items():
        if header in headers:
            options.setdefault(name, _header_value(name, headers[header]))
    has_own_deadline = "deadline_s" in options
    options.setdefault("deadline_s", request_timeout_s)
    if not isinstance(options.get("cache_salt", ""), str):
        raise InvalidRequestError("cache_salt", options["cache_salt"], "a text")
    if body.logit_bias is not None:
        sampling["logit_bias"] = {_token_id(key): value for key, value in body.logit_bias.items()}
    if (form := output_form(body)) is not None:
        sampling["structured_outputs"] = form
    return Parsed(SamplingParams(**{**passed, **sampling}), SubmitOptions(**options), ignored, has_own_deadline)


def _as_integer(name: str, value: Any) -> Any:
    """JSON has one kind of number: 8.0 is an integer too."""
    is_integral = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_integral and name in _INTEGERS else value


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdecimal() or len(key) > 10:
        raise InvalidRequestError("logit_bias", key, "token ids as keys, such as {'17': -100}")
    return int(key)


def _header_value(name: str, text: str) -> Any:
    if name != "priority":
        return text
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 12:
        raise InvalidRequestError("priority", text, "an integer")
    return int(text)


def _invalid(error: msgspec.ValidationError) -> InvalidRequestError:
    """`Expected `bool`, got `str` - at `$.stream`` in our words."""
    text, _, path = str(error).partition(" - at `$.")
    param = path.rstrip("`") or "body"
    return InvalidRequestError(param, message=f"{param}: {shorten(text)[1:-1].lower()}")
