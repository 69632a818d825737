"""litellm: OpenAI's and vLLM's provider names, and its own exceptions."""

import asyncio
import json

import litellm
from checks import ANSWER, API_KEY, ARGUMENTS, FORCED, MESSAGES, MODEL, QUESTION, check, main, needs, raises

litellm.suppress_debug_info = True
PROVIDERS = ("openai", "hosted_vllm")


def at(url: str, provider: str = "openai") -> dict:
    return {"model": f"{provider}/{MODEL}", "api_base": url, "api_key": API_KEY, "temperature": 0}


@check
def completion(url):
    asked = {**at(url, "text-completion-openai"), "prompt": QUESTION}
    assert litellm.text_completion(**asked).choices[0].text == ANSWER
    assert "".join(chunk.choices[0].text or "" for chunk in litellm.text_completion(stream=True, **asked)) == ANSWER


@check
def chat(url):
    for provider in PROVIDERS:
        found = litellm.completion(messages=MESSAGES, logprobs=True, top_logprobs=1, **at(url, provider)).choices[0]
        assert found.message.content == ANSWER and found.finish_reason == "stop"
        assert [one["token"] for one in found.logprobs["content"]][:2] == ["4", "7"]


@check
def usage(url):
    found = litellm.completion(messages=MESSAGES, **at(url)).usage
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens and found.completion_tokens == 3


@check
def stream(url):
    for provider in PROVIDERS:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(litellm.completion(messages=MESSAGES, **options, **at(url, provider)))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        counted = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        assert counted[-1].completion_tokens == 3


@check
def asynchronous(url):
    async def ask():
        return await asyncio.gather(*(litellm.acompletion(messages=MESSAGES, **at(url)) for _ in range(8)))

    assert {found.choices[0].message.content for found in asyncio.run(ask())} == {ANSWER}


@check
def errors(url):
    def ask(**fields):
        return litellm.completion(**{"messages": MESSAGES, **at(url), **fields})

    with raises(litellm.BadRequestError, "nearest: 2"):
        ask(temperature=3)
    with raises(litellm.NotFoundError, "no model 'gpt-4'"):
        ask(model="openai/gpt-4")
    with raises(litellm.AuthenticationError, "API key"):
        ask(api_key="wrong")


@check
def error_in_a_stream(url):
    long = {"max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True, "deadline_s": 0.3}}
    with raises(litellm.ServiceUnavailableError, "deadline_s"):
        for _ in litellm.completion(messages=MESSAGES, **long, **at(url)):
            pass


@needs("response_format")
def json_object(url):
    found = litellm.completion(messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=8, **at(url))
    assert found.choices[0].message.content.lstrip().startswith("{")


@needs("tools")
def forced_tool(url):
    (call,) = litellm.completion(messages=MESSAGES, **FORCED, **at(url)).choices[0].message.tool_calls
    assert call.function.name == "carry" and json.loads(call.function.arguments) in ARGUMENTS


if __name__ == "__main__":
    main()
