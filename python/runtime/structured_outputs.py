"""What an output must look like: `SamplingParams.structured_outputs`, checked before a grammar is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from runtime.errors import InvalidRequestError, did_you_mean

MAX_JSON_CHARS = 128 << 10
MAX_JSON_DEPTH = 64  # of objects and lists in one another, in the schema
MAX_REFS = 1000
MAX_REGEX_CHARS = 8 << 10
MAX_GRAMMAR_CHARS = 64 << 10
MAX_GRAMMAR_LINES = 1000
MAX_CHOICES = 4096
MAX_CHOICES_CHARS = 64 << 10

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_NAME = "structured_outputs"


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The form of an output, in exactly one way; names are vLLM's.

    Args:
        json: a JSON schema, as a dict or as JSON text. Properties come in the schema's order.
        regex: a regular expression that the whole output matches.
        choice: the output is one of these texts.
        grammar: a grammar in llguidance's variant of Lark; `%json {...}` in it is a JSON schema.
        json_object: True: any JSON object.
        disable_any_whitespace: JSON comes without whitespace between its tokens; otherwise there may be some anywhere.

    Raises:
        InvalidRequestError: not exactly one, or beyond a limit. What its compiler refuses comes as the request's error.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    # what was given, in one form: equal ones share a compiled grammar
    kind: str = field(init=False, repr=False, compare=False)  # json, regex, choice (text: a JSON list) or grammar
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise InvalidRequestError(f"{_NAME}.{name}", getattr(self, name), "True or False")
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise InvalidRequestError(_NAME, message=f"{_NAME}: exactly one of {', '.join(_KINDS)}; given: {found}")
        check = {"json": _schema_text, "regex": _regex_text, "choice": _choice_text, "grammar": _grammar_text}
        is_any_object = given[0] == "json_object"
        kind = "json" if is_any_object else given[0]
        text = '{"type":"object"}' if is_any_object else check[kind](getattr(self, kind))
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "text", text)

    @classmethod
    def of(cls, value: object) -> StructuredOutputsParams | None:
        """The same, or one made of a mapping of its arguments; None of None."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise InvalidRequestError(
                _NAME, value, f"a StructuredOutputsParams, or a dict with one of {', '.join(_KINDS)}"
            )
        known = [f.name for f in fields(cls) if f.init]
        for name in value:
            if name not in known:
                message = f"unknown field {str(name)[:80]!r} of {_NAME}{did_you_mean(name, known)}"
                raise InvalidRequestError(f"{_NAME}.{str(name)[:80]}", message=message)
        return cls(**value)

    def as_arguments(self) -> dict[str, Any]:
        """Plain values from which `of` makes an equal one."""
        given: dict[str, Any] = {"choice": json.loads(self.text)} if self.kind == "choice" else {self.kind: self.text}
        return {**given, "disable_any_whitespace": self.disable_any_whitespace}


def _schema_text(value: object) -> str:
    name = f"{_NAME}.json"
    if isinstance(value, str):
        _check_len(name, value, MAX_JSON_CHARS)
        value = _parse(name, value)
    if not isinstance(value, Mapping):
        raise InvalidRequestError(name, value, "a JSON schema: an object")
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise InvalidRequestError(name, value, f"nested at most {MAX_JSON_DEPTH} deep")
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(name, message=f"{name} is not JSON: {error}") from None
    _check_len(name, text, MAX_JSON_CHARS)
    if (count := text.count('"$ref"')) > MAX_REFS:
        raise InvalidRequestError(name, f"{count} references", f"at most {MAX_REFS} of them", MAX_REFS)
    return text


def _parse(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidRequestError(name, text, f"nested at most {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise InvalidRequestError(name, message=f"{name} is not JSON: {error}") from None


def _is_deeper(value: object, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth == 0 or any(_is_deeper(one, depth - 1) for one in value.values())
    if isinstance(value, (list, tuple)):
        return depth == 0 or any(_is_deeper(one, depth - 1) for one in value)
    return False


def _regex_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{_NAME}.regex", value, "a regular expression")
    _check_len(f"{_NAME}.regex", value, MAX_REGEX_CHARS)
    return value


def _choice_text(value: object) -> str:
    name = f"{_NAME}.choice"
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(isinstance(one, str) and one for one in value):  # type: ignore[attr-defined]
        raise InvalidRequestError(name, value, "a list of at least one text, none of them empty")
    texts: list[str] = list(dict.fromkeys(value))  # type: ignore[call-overload]
    if len(texts) > MAX_CHOICES:
        raise InvalidRequestError(name, f"{len(texts)} texts", f"at most {MAX_CHOICES} of them", MAX_CHOICES)
    text = json.dumps(texts, ensure_ascii=False)
    _check_len(name, text, MAX_CHOICES_CHARS)
    return text


def _grammar_text(value: object) -> str:
    name = f"{_NAME}.grammar"
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(name, value, "a grammar in Lark's notation")
    _check_len(name, value, MAX_GRAMMAR_CHARS)
    if (count := value.count("\n") + 1) > MAX_GRAMMAR_LINES:
        raise InvalidRequestError(name, f"{count} lines", f"at most {MAX_GRAMMAR_LINES} of them", MAX_GRAMMAR_LINES)
    return value


def _check_len(name: str, text: str, limit: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(name, message=f"{name} holds half of a surrogate pair") from None
    if len(text) > limit:
        raise InvalidRequestError(name, f"{len(text)} characters", f"at most {limit} of them", limit)
