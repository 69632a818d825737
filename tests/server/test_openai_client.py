"""OpenAI's own Python client, unchanged."""

import asyncio

import openai
import pytest

MESSAGES = [{"role": "system", "content": "You are a calculator."}, {"role": "user", "content": "12+35="}]


@pytest.fixture
def openai_client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_models(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["builtin"]
    assert openai_client.models.retrieve("builtin").owned_by == "runtime"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("gpt-4")


def test_a_chat(openai_client):
    asked = {"model": "builtin", "messages": [MESSAGES[1]], "temperature": 0, "logprobs": True, "top_logprobs": 1}
    found = openai_client.chat.completions.create(**asked)
    assert found.choices[0].message.content == "47" and found.choices[0].finish_reason == "stop"
    assert [entry.token for entry in found.choices[0].logprobs.content][:2] == ["4", "7"]
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.prompt_tokens_details.cached_tokens >= 0
    assert openai_client.chat.completions.create(model="builtin", messages=MESSAGES, max_tokens=1).choices


def test_a_chat_in_chunks(openai_client):
    asked = {"model": "builtin", "messages": [MESSAGES[1]], "temperature": 0, "n": 2}
    stream = openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["47", "47"] and usage.completion_tokens == 6


def test_the_streaming_helper(openai_client):
    with openai_client.chat.completions.stream(model="builtin", messages=[MESSAGES[1]], temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.done" in kinds and final.choices[0].message.content == "47"


def test_completions(openai_client):
    asked = {"model": "builtin", "prompt": ["12+35=", "40+2="], "temperature": 0, "logprobs": 1}
    found = openai_client.completions.create(**asked)
    assert [choice.text for choice in found.choices] == ["47", "42"]
    assert found.choices[0].logprobs.tokens[:2] == ["4", "7"]
    texts = ["", ""]
    for chunk in openai_client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["47", "42"]


def test_many_at_once(server):
    async def main():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        ask = client.chat.completions.create
        questions = [(f"{a}+{b}=", str(a + b)) for a in range(10, 18) for b in range(20, 24)]
        asked = [
            ask(model="builtin", messages=[{"role": "user", "content": text}], temperature=0) for text, _ in questions
        ]
        answers = [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
        await client.close()
        return answers, [expected for _, expected in questions]

    answers, expected = asyncio.run(main())
    assert sum(a == e for a, e in zip(answers, expected)) >= 30  # the model knows sums


def test_errors_are_the_clients_own_classes(openai_client):
    def ask(**fields):
        return openai_client.chat.completions.create(**{"model": "builtin", "messages": MESSAGES, **fields})

    with pytest.raises(openai.BadRequestError) as bad:
        ask(temperature=3)
    assert (
        bad.value.param == "temperature" and bad.value.code == "invalid_request" and "nearest: 2" in bad.value.message
    )
    with pytest.raises(openai.BadRequestError, match="tools: this model's chat template leaves them out"):
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-4")
    with pytest.raises(openai.APIError, match="deadline_s"):
        for _ in ask(stream=True, max_tokens=900, extra_body={"ignore_eos": True, "deadline_s": 0.1}):
            pass


def test_leaving_a_stream_aborts_it(openai_client, client, wait_for):
    stream = openai_client.completions.create(
        model="builtin", prompt="1+1=", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_for(lambda: client.get("/stats").json()["num_running"] == 0)
