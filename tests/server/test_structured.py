"""`response_format` and vLLM's names for the form of an answer, as clients use them."""

import json
import re

import jsonschema
import pytest
from structured_cases import REFUSED_FORMS

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def chat(client, **body):
    messages = [{"role": "user", "content": "12+35="}]
    return client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 150, "seed": 1, **body})


def text_of(response):
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_chat_answers_in_json(client, temperature):
    jsonschema.validate(json.loads(text_of(chat(client, response_format=FORMAT, temperature=temperature))), SCHEMA)


def test_a_stream_adds_up_to_the_whole(client):
    whole = text_of(chat(client, response_format=FORMAT))
    response = chat(client, response_format=FORMAT, stream=True)
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line and not line.endswith("[DONE]")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


def test_plain_text_is_asked_for_by_name_too(client):
    assert text_of(chat(client, response_format={"type": "text"}, temperature=0)) == "47"


@pytest.mark.parametrize(
    "body, form",
    [
        ({"guided_regex": "[0-9]{2}!"}, "[0-9]{2}!"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_json": {"const": 7}}, r"\s*7\s*"),
        ({"guided_grammar": 'start: "<" /[a-c]/ ">"'}, "<[a-c]>"),
        ({"structured_outputs": {"regex": "[xy]{4}"}}, "[xy]{4}"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 1}}}},
            r"\s*1\s*",
        ),
    ],
)
def test_both_endpoints_take_vllms_names(client, body, form):
    completion = client.post("/v1/completions", json={"prompt": "12+35=", "max_tokens": 100, **body})
    assert re.fullmatch(form, text_of(completion)) and re.fullmatch(form, text_of(chat(client, **body)))


REFUSED = [
    ({"response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
    ({"response_format": "json"}, "response_format", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "a name and a schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}},
        "response_format.json_schema.schema",
        "a JSON schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x"] * 50_000}}}},
        "response_format.json_schema.schema",
        "at most 131072",
    ),
    ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex", "contradict"),
    ({"guided_json": {"type": "bogus"}}, "structured_outputs", "bogus"),
    ({"guided_regex": "(" * 3000}, "structured_outputs", "invalid regex"),
    ({"structured_outputs": {"jason": {}}}, "structured_outputs.jason", "did you mean 'json'"),
    ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "end-of-sequence"),
]


@pytest.mark.parametrize("body, param, words", REFUSED, ids=[str(body)[:50] for body, _, _ in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_before_anything_is_streamed(client, body, param, words, stream):
    response = chat(client, stream=stream, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"] and len(error["message"]) < 500


def is_json(value):
    try:
        return bool(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError):
        return False


IN_A_BODY = [case for case in REFUSED_FORMS if is_json(case[0])]


@pytest.mark.parametrize("given, param, words", IN_A_BODY, ids=range(len(IN_A_BODY)))
def test_a_bad_form_is_refused_as_in_python(client, given, param, words):
    response = chat(client, structured_outputs=given)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert re.search(words, error["message"])


def test_openai_clients_parse(server):
    openai = pytest.importorskip("openai")
    import pydantic

    class Answer(pydantic.BaseModel):
        sum: int = pydantic.Field(ge=0, le=99)
        sure: bool

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        found = client.chat.completions.parse(
            model="builtin",
            messages=[{"role": "user", "content": "12+35="}],
            response_format=Answer,
            max_tokens=200,
            seed=1,
        )
    assert isinstance(found.choices[0].message.parsed, Answer)
