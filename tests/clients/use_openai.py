"""openai from 1.0 on: client objects, synchronous and not."""

import asyncio
import json

import openai
from checks import ANSWER, API_KEY, ARGUMENTS, FORCED, MESSAGES, MODEL, QUESTION, TOOL, check, main, needs, raises

GREEDY = {"model": MODEL, "temperature": 0}


def client_of(url: str, key: str = API_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


@check
def models(url):
    assert [model.id for model in client_of(url).models.list()] == [MODEL]
    assert client_of(url).models.retrieve(MODEL).id == MODEL


@check
def completion(url):
    found = client_of(url).completions.create(prompt=[QUESTION, "40+2="], logprobs=1, **GREEDY)
    assert [choice.text for choice in found.choices] == [ANSWER, "42"]
    assert found.choices[0].logprobs.tokens[:2] == ["4", "7"]


@check
def chat(url):
    asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, **GREEDY}
    found = client_of(url).chat.completions.create(**asked).choices[0]
    assert found.message.content == ANSWER and found.finish_reason == "stop"
    assert [entry.token for entry in found.logprobs.content][:2] == ["4", "7"]


@check
def usage(url):
    found = client_of(url).chat.completions.create(messages=MESSAGES, **GREEDY).usage
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens and found.completion_tokens == 3


@check
def stream(url):
    text, counted = "", None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client_of(url).chat.completions.create(messages=MESSAGES, **options, **GREEDY):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        counted = chunk.usage or counted
    assert text == ANSWER and counted.completion_tokens == 3
    chunks = client_of(url).completions.create(prompt=QUESTION, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


@check
def asynchronous(url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key=API_KEY, max_retries=0) as client:
            create = client.chat.completions.create
            return await asyncio.gather(*(create(messages=MESSAGES, **GREEDY) for _ in range(8)))

    assert {found.choices[0].message.content for found in asyncio.run(ask())} == {ANSWER}


@check
def errors(url):
    def ask(key=API_KEY, **fields):
        return client_of(url, key).chat.completions.create(**{"messages": MESSAGES, **GREEDY, **fields})

    with raises(openai.BadRequestError, "nearest: 2"):
        ask(temperature=3)
    with raises(openai.NotFoundError, "no model 'gpt-4'"):
        ask(model="gpt-4")
    with raises(openai.AuthenticationError, "API key"):
        ask(key="wrong")


@check
def error_in_a_stream(url):
    long = {"max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True, "deadline_s": 0.3}}
    with raises(openai.APIError, "deadline_s"):
        for _ in client_of(url).chat.completions.create(messages=MESSAGES, **long, **GREEDY):
            pass


@needs("response_format")
def json_schema(url):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "flag", "schema": schema, "strict": True}}
    found = client_of(url).chat.completions.create(messages=MESSAGES, response_format=wanted, **GREEDY)
    assert json.loads(found.choices[0].message.content) in ({"a": True}, {"a": False})


@needs("tools")
def forced_tool(url):
    """Called, and called in a stream; then its result is told."""
    create = client_of(url).chat.completions.create
    found = create(messages=MESSAGES, **FORCED, **GREEDY).choices[0]
    (call,) = found.message.tool_calls
    assert call.function.name == "carry" and json.loads(call.function.arguments) in ARGUMENTS
    chunks = create(messages=MESSAGES, stream=True, tools=[TOOL], tool_choice="required", **GREEDY)
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert parts[0].function.name == "carry"
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "false"}
    told = create(messages=[*MESSAGES, found.message, result], max_tokens=8, **GREEDY)
    assert isinstance(told.choices[0].message.content, str)


if __name__ == "__main__":
    main()
