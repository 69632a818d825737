"""The form of an answer, as clients ask for it: OpenAI's `response_format`, and vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidRequestError
from runtime.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from runtime.server.protocol import Common

_GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
_RESPONSE_FORMAT = "response_format"


def output_form(body: Common) -> StructuredOutputsParams | None:
    """None: any text.

    Raises:
        InvalidRequestError: asked for in several ways, or not understood.
    """
    names = [name for name in (_RESPONSE_FORMAT, "structured_outputs", *_GUIDED) if getattr(body, name) is not None]
    if len(names) > 1:
        raise InvalidRequestError(names[1], message=f"{' and '.join(names)} contradict each other: give one of them")
    if not names:
        return None
    (name,) = names
    value = getattr(body, name)
    if name == "structured_outputs":
        return StructuredOutputsParams.of(value)
    if name != _RESPONSE_FORMAT:
        return StructuredOutputsParams.of({_GUIDED[name]: value})
    return _of_response_format(value)


def _of_response_format(value: Any) -> StructuredOutputsParams | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind != "json_schema":
        given = value if kind is None else {"type": kind}
        raise InvalidRequestError(
            _RESPONSE_FORMAT, given, "{'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', ...}"
        )
    return _of_json_schema(value.get("json_schema"))


def _of_json_schema(value: Any) -> StructuredOutputsParams:
    """Strict or not: the answer always has the form."""
    name = f"{_RESPONSE_FORMAT}.json_schema"
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise InvalidRequestError(name, value, "an object with a name and a schema")
    if value.get("strict") not in (None, True, False):
        raise InvalidRequestError(f"{name}.strict", value["strict"], "true or false")
    schema = value.get("schema")
    if schema is None:
        return StructuredOutputsParams(json_object=True)
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"{name}.schema", schema, "a JSON schema: an object")
    try:
        return StructuredOutputsParams(json=schema)
    except InvalidRequestError as error:
        message = error.message.replace("structured_outputs.json", f"{name}.schema")
        raise InvalidRequestError(f"{name}.schema", message=message) from None
