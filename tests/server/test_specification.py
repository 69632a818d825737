"""Requests made up from OpenAI's published description: no 5xx, no hang, answers and events as described."""

import importlib.util
import json
import os
from pathlib import Path

import hypothesis
import jsonschema
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from scripted_server import MODEL, ScriptedServer, make_tokenizer
from tool_templates import HERMES

PUBLISHED = (Path(__file__).parent / "openai-openapi-subset.json").read_text()
NUM_EXAMPLES = int(os.environ.get("RUNTIME_TEST_EXAMPLES", 40))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


# what the server refuses by name; with these in it, hardly a made-up request would get any further
NOT_SERVED = {
    *("audio", "best_of", "function_call", "functions", "modalities", "moderation", "prediction", "reasoning_effort"),
    *("service_tier", "store", "suffix", "verbosity", "web_search_options"),
}
TEXT = {"type": "string", "minLength": 1}
BIAS = {"type": "number", "minimum": -100, "maximum": 100}


def _object(**properties):
    """With all of these."""
    return {"type": "object", "required": [*properties], "properties": properties}


ANY_TEXT = {"type": "string"}
TEXT_MESSAGE = _object(role={"enum": ["system", "user", "assistant"]}, content=ANY_TEXT)
CALL = _object(
    id=ANY_TEXT,
    type={"enum": ["function"]},
    function=_object(name=ANY_TEXT, arguments={"enum": ["{}", '{"a": [1.5, null]}', ""]}),
)
TOOL_MESSAGES = [
    _object(role={"enum": ["assistant"]}, content={"enum": ["", None]}, tool_calls={"type": "array", "items": CALL}),
    _object(role={"enum": ["tool"]}, content=ANY_TEXT, tool_call_id=ANY_TEXT),
]


def _schemas(depth):
    """Those of JSON schemas: most are as they should be, some have a pattern or a bound that is made up."""
    inner = _schemas(depth - 1) if depth else {"enum": [{}]}
    properties = {"type": "object", "maxProperties": 3, "additionalProperties": inner}
    found = [
        _object(type={"enum": ["string", "integer", "number", "boolean", "null", ["string", "null"]]}),
        _object(enum={"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": ["string", "integer", "null"]}}),
        _object(type={"enum": ["string"]}, pattern=ANY_TEXT),
        _object(type={"enum": ["integer"]}, minimum={"type": "integer"}, multipleOf={"type": "integer"}),
        _object(type={"enum": ["array"]}, items=inner, maxItems={"type": "integer", "maximum": 4}),
        _object(type={"enum": ["object"]}, properties=properties, additionalProperties={"type": "boolean"}),
        _object(anyOf={"type": "array", "minItems": 1, "maxItems": 3, "items": inner}),
    ]
    return {"anyOf": [{**one, "additionalProperties": False} for one in found]}


def _forms(published):
    """The published ones, in which a schema may be any object, and those of schemas that mean something."""
    of_schema = _object(type={"enum": ["json_schema"]}, json_schema=_object(name=ANY_TEXT, schema=_schemas(2)))
    return {"anyOf": [*published["oneOf"], of_schema, of_schema]}


HAS_GRAMMARS = importlib.util.find_spec("llguidance") is not None


def description():
    """OpenAI's own, where an echoed prompt's first token, which has no logprob, may say so with null.

    What tells kinds of tool calls apart is not told there: its values are no names of schemas.
    """
    found = json.loads(PUBLISHED)
    choice = found["components"]["schemas"]["CreateCompletionResponse"]["properties"]["choices"]["items"]
    logprobs = choice["properties"]["logprobs"]["anyOf"][0]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        logprobs[name]["items"] = {"anyOf": [logprobs[name]["items"], {"type": "null"}]}
    del found["components"]["schemas"]["ChatCompletionMessageToolCalls"]["items"]["discriminator"]
    return found


def described(*, as_served, tools=False):
    """The description, with answers to bad requests, which it leaves out.

    `as_served`: good requests alone, without what is refused by name; `tools`: to a model that knows some.
    """
    error = {"description": "refused", "content": {"application/json": {"schema": _ref("ErrorResponse")}}}
    found = description()
    for methods in found["paths"].values():
        for operation in methods.values():
            operation["responses"] |= {"4XX": error, "429": error}
    if as_served:
        found["paths"]["/models/{model}"]["get"]["parameters"][0]["schema"]["enum"] = ["builtin"]
        for name in ("CreateCompletionRequest", "CreateChatCompletionRequest"):
            found["components"]["schemas"][name] = _as_served(found["components"]["schemas"], name, tools)
    schema = schemathesis.openapi.from_dict(found)
    schema.config.phases.coverage.enabled = False  # thousands of cases
    schema.config.max_stream_events = 10_000  # its default of 20 cuts the longer streams
    if as_served:
        schema.config.generation.modes = [schemathesis.GenerationMode.POSITIVE]
    return schema


def _as_served(schemas, name, tools):
    properties, required = {}, []
    for part in _parts(schemas, schemas[name]):
        properties |= part.get("properties", {})
        required += part.get("required", [])
    kept = {field: value for field, value in properties.items() if field not in NOT_SERVED}
    if HAS_GRAMMARS:  # served on both endpoints
        published = schemas["CreateChatCompletionRequest"]["allOf"][1]["properties"]["response_format"]
        kept["response_format"] = _forms(published)
    else:
        kept.pop("response_format", None)
    kept["model"] = {"enum": [MODEL if tools else "builtin"]}
    if "messages" in kept:
        messages = {"anyOf": [TEXT_MESSAGE, *TOOL_MESSAGES]} if tools else TEXT_MESSAGE
        kept["messages"] = {"type": "array", "minItems": 1, "items": messages}
        kept |= _tools(schemas) if tools else NO_TOOLS
    if "prompt" in kept:
        kept["prompt"] = {"anyOf": [TEXT, {"type": "array", "minItems": 1, "maxItems": 4, "items": TEXT}]}
    kept["n"] = {"type": "integer", "minimum": 1, "maximum": 3}
    kept["logit_bias"] = {"type": "object", "propertyNames": {"pattern": "^[1-9][0-9]$"}, "additionalProperties": BIAS}
    few = {"type": "integer", "minimum": 1, "maximum": 8}  # the model is real, and a core is shared
    kept |= {limit: few for limit in ("max_tokens", "max_completion_tokens") if limit in kept}
    return {"type": "object", "properties": kept, "required": [*required, "max_tokens"]}


NO_TOOLS = {"tools": {"type": "array", "maxItems": 0}, "tool_choice": {"enum": ["auto"]}}


def _tools(schemas):
    """Functions, as published, of which the model calls one."""
    function = schemas["FunctionObject"]
    function = {**function, "properties": {**function["properties"], "name": {"enum": ["f", "g"]}}}
    tool = _object(type={"enum": ["function"]}, function=function)
    return {
        "tools": {"type": "array", "minItems": 1, "maxItems": 2, "items": tool},
        "tool_choice": {"enum": ["none", "auto"]},
    }


def _parts(schemas, schema):
    """A schema's own properties, and those that it is made of."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    yield schema
    for part in schema.get("allOf", []):
        yield from _parts(schemas, part)


def _ref(name):
    return {"$ref": f"#/components/schemas/{name}"}


as_served = described(as_served=True)
as_published = described(as_served=False)
with_tools = described(as_served=True, tools=True).include(path="/chat/completions")
made_up = hypothesis.settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
    database=None,
)


@pytest.fixture
def statuses():
    """Those of one operation's answers; a description whose requests are all refused would test little."""
    found = set()
    yield found
    assert 200 in found


@as_served.parametrize()
@made_up
def test_requests_that_are_served(case, server, statuses):
    statuses.add(check(case, server))


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A server whose model says something and calls one of two functions."""
    with ScriptedServer(make_tokenizer(tmp_path_factory.mktemp("model"), HERMES)) as server:
        server.script("Well.", '<tool_call>{"name": "f", "argu', 'ments": {"a": ', "1}}</tool_call>")
        yield server


@with_tools.parametrize()
@made_up
def test_requests_with_tools(case, caller, statuses):
    statuses.add(check(case, caller))


@as_published.parametrize()
@made_up
def test_requests_with_everything(case, server):
    check(case, server)


def check(case, server):
    response = case.call(base_url=f"{server.url}/v1", timeout=20)
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        assert response.status_code == 200
        check_events(response.text, "chat" in case.path)
    else:
        case.validate_response(response, checks=CHECKS)
    return response.status_code


CHUNKS = {True: "CreateChatCompletionStreamResponse", False: "CreateCompletionResponse"}


def check_events(text, is_chat):
    """Every event is a chunk as described, or an error; the last one is [DONE], or the error."""
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    for event in events[:-1] if events[-1] == "[DONE]" else events:
        found = json.loads(event)
        validator("ErrorResponse" if "error" in found else CHUNKS[is_chat]).validate(found)
    assert events[-1] == "[DONE]" or "error" in json.loads(events[-1])


def validator(name):
    nullable = json.loads(json.dumps(description()), object_hook=_json_schema)
    if name == "CreateCompletionResponse":  # its finish_reason is null until the last chunk, as its `logprobs` may be
        choice = nullable["components"]["schemas"][name]["properties"]["choices"]["items"]
        choice["properties"]["finish_reason"] = {"anyOf": [choice["properties"]["finish_reason"], {"type": "null"}]}
    return jsonschema.Draft202012Validator({**_ref(name), **nullable})


def _json_schema(part):
    """OpenAPI 3.0's `nullable` in JSON Schema's words."""
    if part.pop("nullable", False) is True:
        return {"anyOf": [part, {"type": "null"}]}
    return part


@pytest.mark.parametrize("is_chat", [True, False])
def test_streams_are_as_described(client, is_chat):
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    prompt = {"messages": [{"role": "user", "content": "12+35="}]} if is_chat else {"prompt": "12+35="}
    logprobs = {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    for more in ({}, logprobs, {"n": 2, "stream_options": {"include_usage": True}}):
        check_events(client.post(path, json={**prompt, "stream": True, **more}).text, is_chat)
