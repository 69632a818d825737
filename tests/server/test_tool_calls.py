"""Tools over HTTP, with a model that says what the test wants it to."""

import asyncio
import json
import shutil
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
from scripted_server import ScriptedServer, make_tokenizer
from tool_templates import ASKED, HERMES, LLAMA3, PLAIN, TOOLS
from transformers.utils.chat_template_utils import render_jinja_template

from runtime.config import BUILTIN_MODEL

TWO_CALLS = [
    *(
        "Let me",
        " see.\n",
        "<tool",
        '_call>\n{"name": "get_',
        'weather", "argu',
        'ments": {"city": ',
        '"Par',
        'is"}}\n</tool_',
    ),
    *('call>\n<tool_call>{"name": "get_time", "arguments": {}}', "\n</tool_call>", ""),
]
ONE_CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ARGUMENTS = '{"city": "Paris"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ScriptedServer(make_tokenizer(tmp_path_factory.mktemp("hermes"), HERMES)) as server:
        yield server


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("llama"), LLAMA3, special=["<|python_tag|>"])
    with ScriptedServer(tokenizer) as server:
        yield server


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def post(server, path="/v1/chat/completions", **body):
    return httpx.post(server.url + path, json={"messages": ASKED, "tools": TOOLS, **body}, timeout=30)


def deltas_of(response):
    """(deltas, finish reasons) of the one choice of a stream."""
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    return [choice["delta"] for choice in choices], [choice["finish_reason"] for choice in choices]


def test_two_calls_in_one_answer(client, server):
    server.script(*TWO_CALLS)
    found = client.chat.completions.create(model="scripted", messages=ASKED, tools=TOOLS).choices[0]
    assert found.finish_reason == "tool_calls" and found.message.content == "Let me see."
    calls = found.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "get_weather", ARGUMENTS),
        ("function", "get_time", "{}"),
    ]
    assert len({call.id for call in calls}) == 2 and all(call.id.startswith("call_") for call in calls)
    server.script("<tool_call>" + ONE_CALL)
    alone = client.chat.completions.create(model="scripted", messages=ASKED, tools=TOOLS).choices[0].message
    assert alone.content is None and len(alone.tool_calls) == 1


def test_two_calls_in_a_stream(client, server):
    server.script(*TWO_CALLS)
    with client.chat.completions.stream(model="scripted", messages=ASKED, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_completion().choices[0]
    assert found.finish_reason == "tool_calls" and found.message.content == "Let me see."
    calls = [(call.function.name, call.function.arguments) for call in found.message.tool_calls]
    assert calls == [("get_weather", ARGUMENTS), ("get_time", "{}")]
    assert kinds.count("tool_calls.function.arguments.delta") == 6  # two names, and arguments in 3 pieces and in 1


def test_a_streams_deltas_are_openais(server):
    server.script(*TWO_CALLS)
    deltas, reasons = deltas_of(post(server, stream=True))
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "Let me"}] and deltas[-1] == {}
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert all(len(delta["tool_calls"]) == 1 for delta in deltas if "tool_calls" in delta)
    assert [call["index"] for call in calls] == [0, 0, 0, 0, 1, 1]
    for first, name in ((calls[0], "get_weather"), (calls[4], "get_time")):
        assert first["type"] == "function" and first["function"] == {"name": name, "arguments": ""} and first["id"]
    assert [call["function"] for call in calls[1:4]] == [{"arguments": text} for text in ('{"city": ', '"Par', 'is"}')]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]
    assert not any("tool_call>" in str(delta) for delta in deltas)


def test_logprobs_and_choices_beside_calls(server):
    server.script(*TWO_CALLS)
    body = {"n": 2, "logprobs": True, "top_logprobs": 1}
    whole = post(server, **body).json()["choices"]
    assert [len(choice["logprobs"]["content"]) for choice in whole] == [len(TWO_CALLS)] * 2
    assert all(len(choice["message"]["tool_calls"]) == 2 for choice in whole)
    events = [line.removeprefix("data: ") for line in post(server, **body, stream=True).text.strip().split("\n\n")]
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        tokens = [entry["token"] for choice in mine if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert tokens == TWO_CALLS
        indices = {call["index"] for choice in mine for call in choice["delta"].get("tool_calls", [])}
        assert indices == {0, 1}


def test_results_of_tools_go_back(client, server):
    """As `transformers` renders them, where arguments are objects; a client's null fields are nothing."""
    server.script(*TWO_CALLS)
    said = client.chat.completions.create(model="scripted", messages=ASKED, tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"<{call.id}>"} for call in said.tool_calls]
    server.script("Sunny", ", noon.")
    messages = [*ASKED, said.model_dump(), *results, {"role": "user", "content": "Thanks"}]
    found = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS).choices[0]
    assert (found.finish_reason, found.message.content) == ("stop", "Sunny, noon.")
    assert found.message.tool_calls is None
    assert server.engine.submitted[-1] == rendered(HERMES, [*ASKED, with_objects(said), *results, messages[-1]], TOOLS)
    assert f"<tool_response>\n<{said.tool_calls[1].id}>\n</tool_response>" in server.engine.submitted[-1]


def with_objects(message):
    calls = [
        {"function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)}}
        for call in message.tool_calls
    ]
    return {"role": "assistant", "content": message.content, "tool_calls": calls}


def rendered(template, messages, tools):
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    text, _ = render_jinja_template(
        [messages], chat_template=template, tools=tools, add_generation_prompt=True, **tokens
    )
    return text[0]


def test_llamas_calls(llama):
    """What a special token says is seen, and a call's message may have no content."""
    one = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    for pieces in (("<|python_tag|>", one), (one[:20], one[20:])):
        llama.script(*pieces)
        choice = post(llama).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert llama.engine.params[-1]["skip_special_tokens"] is False
    assert llama.engine.submitted[-1] == rendered(LLAMA3, ASKED, TOOLS)
    post(llama, tools=[])
    assert "skip_special_tokens" not in llama.engine.params[-1]
    said, result = choice["message"], {"role": "tool", "tool_call_id": "x", "content": "22"}
    assert post(llama, messages=[*ASKED, said, result]).status_code == 200
    objects = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
    }
    assert llama.engine.submitted[-1] == rendered(LLAMA3, [*ASKED, objects, result], TOOLS)
    twice = post(llama, messages=[*ASKED, {**said, "tool_calls": said["tool_calls"] * 2}, result])
    assert twice.status_code == 400 and "single tool-calls" in twice.json()["error"]["message"]


BROKEN = [
    '<tool_call>\n{"name": "get_weather", "argum',
    '<tool_call>{"name": "delete_everything", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "get_time", "arguments": {"a": nul}}</tool_call>',
    "<tool_call>" + '{"a":' * 5000,
    "<tool_call" * 50,
]


@pytest.mark.parametrize("text", BROKEN, ids=[text[:40] for text in BROKEN])
def test_what_is_no_call_is_content(server, text):
    server.script(*text)
    choice = post(server).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    deltas, reasons = deltas_of(post(server, stream=True))
    if "nul}" not in text:  # whose arguments had begun
        assert "".join(delta.get("content", "") for delta in deltas) == text
    assert reasons[-1] == "stop"


def test_an_answer_that_is_cut_off(server):
    """Its finish reason says so; arguments that were streamed end where they end."""
    text = ['<tool_call>{"name": "get_time", "arguments": {', '"zone": "C', "E"]
    server.script(*text, finish_reason="length")
    choice = post(server).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("".join(text), "length")
    deltas, reasons = deltas_of(post(server, stream=True))
    assert "".join(c["function"]["arguments"] for d in deltas for c in d.get("tool_calls", [])) == '{"zone": "CE'
    assert reasons[-1] == "length" and not any(delta.get("content") for delta in deltas)
    server.script("<tool_call>" + ONE_CALL, " and", finish_reason="length")
    assert post(server).json()["choices"][0]["finish_reason"] == "length"


def test_no_call_where_none_is_wanted(server):
    server.script("<tool_call>" + ONE_CALL)
    for body in ({"tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}):
        message = post(server, **body).json()["choices"][0]["message"]
        assert message["content"] == "<tool_call>" + ONE_CALL and "tool_calls" not in message
        assert server.engine.submitted[-1] == rendered(HERMES, ASKED, None)


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_where_one_is_wanted(server, stream):
    server.script(*TWO_CALLS)
    response = post(server, parallel_tool_calls=False, stream=stream)
    if stream:
        calls = [call for delta in deltas_of(response)[0] for call in delta.get("tool_calls", [])]
        assert {call["index"] for call in calls} == {0}
    else:
        assert len(response.json()["choices"][0]["message"]["tool_calls"]) == 1


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_come(server, llama, stream):
    """The prompt ends where a call has begun, and a grammar does the rest."""
    llama_call = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    for one, beginning, text in ((server, "<tool_call>\n", ONE_CALL), (llama, "", llama_call)):
        one.script(*text)
        for choice in ("required", named("get_weather")):
            response = post(one, tool_choice=choice, stream=stream)
            calls = deltas_of(response)[0] if stream else [response.json()["choices"][0]["message"]]
            calls = [call["function"] for part in calls for call in part.get("tool_calls", [])]
            assert calls[0]["name"] == "get_weather" and "".join(call["arguments"] for call in calls) == ARGUMENTS
            template = HERMES if one is server else LLAMA3
            assert one.engine.submitted[-1] == rendered(template, ASKED, TOOLS) + beginning
            grammar = one.engine.params[-1]["structured_outputs"]["grammar"]
            assert ("get_time" in grammar) == (choice == "required")
    server.script('{"name": "get_wea', finish_reason="length")
    choice = post(server, tool_choice="required").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"name": "get_wea', "length")


TRIP = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}


def test_a_model_that_knows_no_tools_calls_them_when_it_must(start_server, tmp_path):
    """The built-in one, whose answers are sums."""
    model = Path(shutil.copytree(BUILTIN_MODEL, tmp_path / "model"))
    make_tokenizer(model, HERMES).close()
    url = start_server(model).url
    trip, rest = tool(name="plan_trip", parameters=TRIP), tool(name="rest")
    body = {"messages": [{"role": "user", "content": "12+35="}], "tools": [trip, rest], "max_tokens": 300}
    for choice, names in (
        ("required", {"plan_trip", "rest"}),
        (named("plan_trip"), {"plan_trip"}),
        (named("rest"), {"rest"}),
    ):
        answer = httpx.post(f"{url}/v1/chat/completions", json={**body, "tool_choice": choice, "seed": 3}, timeout=60)
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["choices"]
        assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
        (call,) = found["message"]["tool_calls"]
        assert call["function"]["name"] in names
        schema = TRIP if call["function"]["name"] == "plan_trip" else {"maxProperties": 0}
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    bad = tool(name="bad", parameters={"properties": {"a": {"type": "bogus"}}})
    refused = httpx.post(
        f"{url}/v1/chat/completions", json={**body, "tools": [bad], "tool_choice": "required"}, timeout=60
    )
    assert refused.status_code == 400 and "bogus" in refused.json()["error"]["message"]


def tool(**function):
    return {"type": "function", "function": {"name": "f", **function}}


def said(**call):
    return {"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def test_a_call_without_arguments_may_be_sent_back(server):
    server.script("ok")
    for arguments in ("", "{}", None, {}):
        assert post(server, **said(function={"name": "get_time", "arguments": arguments})).status_code == 200
        assert '"get_time", "arguments": {}}' in server.engine.submitted[-1]


def test_a_template_that_leaves_tools_out_is_no_reason_to(tmp_path):
    with ScriptedServer(make_tokenizer(tmp_path, PLAIN)) as server:
        server.script("ok")
        error = post(server).json()["error"]
        assert error["param"] == "tools" and "chat template leaves them out" in error["message"]
        error = post(server, tools=None, **said(function={"name": "f", "arguments": "{}"})).json()["error"]
        assert error["param"] == "messages" and "leaves tool_calls out" in error["message"]
        assert post(server, tools=None).status_code == 200


@pytest.mark.parametrize(
    "template, special, parser, text, is_call",
    [
        ("{{ tools }}", [], "auto", ONE_CALL, None),  # refused: nothing tells how this model writes calls
        ("{{ tools }}", ["<|python_tag|>"], "auto", ONE_CALL, True),
        ("{{ tools }}", ["<tool_call>"], "auto", "<tool_call>" + ONE_CALL, True),
        ("{{ tools }}", [], "llama3_json", ONE_CALL, True),
        ("{{ tools }}", ["<|python_tag|>"], "hermes", ONE_CALL, False),
        ("{{ tools }} <tool_call>", ["<|python_tag|>"], "auto", ONE_CALL, False),  # the template goes first
    ],
)
def test_which_parser_is_taken(tmp_path, template, special, parser, text, is_call):
    tokenizer = make_tokenizer(tmp_path, template, special=special)
    with ScriptedServer(tokenizer, tool_call_parser=parser) as server:
        server.script(text)
        response = post(server)
        if is_call is None:
            assert response.status_code == 400 and "--tool-call-parser" in response.json()["error"]["message"]
        else:
            assert ("tool_calls" in response.json()["choices"][0]["message"]) == is_call


def test_the_template_for_tools_is_taken_for_them(tmp_path):
    named = [{"name": "default", "template": "no tools"}, {"name": "tool_use", "template": "{{ tools }} <tool_call>"}]
    with ScriptedServer(make_tokenizer(tmp_path, named)) as server:
        server.script("ok")
        assert post(server).status_code == 200 and "get_weather" in server.engine.submitted[-1]
        assert post(server, tools=None).status_code == 200 and server.engine.submitted[-1] == "no tools"


def test_tokens_of_a_conversation_with_tools(server):
    tokens = post(server, "/tokenize").json()["tokens"]
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text == rendered(HERMES, ASKED, TOOLS)
    assert post(server, "/tokenize", tools=[7]).json()["error"]["param"] == "tools[0]"


def test_completions_have_no_tools(server):
    error = post(server, "/v1/completions", prompt="a").json()["error"]
    assert error["param"] == "tools" and "not supported" in error["message"]


def test_many_at_once(server):
    """Each stream has a parser of its own."""
    server.script(*TWO_CALLS)

    async def main():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)

        async def ask():
            found = ["", ""]
            create = client.chat.completions.create
            async for chunk in await create(model="scripted", messages=ASKED, tools=TOOLS, stream=True):
                for call in chunk.choices[0].delta.tool_calls or []:
                    found[call.index] += call.function.arguments
            return found

        answers = await asyncio.gather(*(ask() for _ in range(20)))
        await client.close()
        return answers

    assert asyncio.run(main()) == [[ARGUMENTS, "{}"]] * 20
