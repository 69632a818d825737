"""openai 0.28: module-level calls, exceptions in `openai.error`."""

import json

import openai
from checks import ANSWER, API_KEY, ARGUMENTS, FORCED, MESSAGES, MODEL, QUESTION, check, main, needs, raises

openai.api_key = API_KEY
GREEDY = {"model": MODEL, "temperature": 0}


def at(url: str) -> dict:
    return {**GREEDY, "api_base": url}


@check
def models(url):
    assert [model["id"] for model in openai.Model.list(api_base=url)["data"]] == [MODEL]


@check
def completion(url):
    found = openai.Completion.create(prompt=QUESTION, logprobs=1, **at(url))
    assert found.choices[0].text == ANSWER and found.choices[0].logprobs.tokens[:2] == ["4", "7"]


@check
def chat(url):
    found = openai.ChatCompletion.create(messages=MESSAGES, **at(url))
    assert found.choices[0].message.content == ANSWER and found.choices[0].finish_reason == "stop"


@check
def usage(url):
    found = openai.ChatCompletion.create(messages=MESSAGES, **at(url)).usage
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens and found.completion_tokens == 3


@check
def stream(url):
    text = "".join(chunk.choices[0].text for chunk in openai.Completion.create(prompt=QUESTION, stream=True, **at(url)))
    deltas = [c.choices[0].delta for c in openai.ChatCompletion.create(messages=MESSAGES, stream=True, **at(url))]
    assert text == "".join(delta.get("content", "") for delta in deltas) == ANSWER


@check
def errors(url):
    with raises(openai.error.InvalidRequestError, "nearest: 2"):
        openai.ChatCompletion.create(messages=MESSAGES, **{**at(url), "temperature": 3})
    with raises(openai.error.InvalidRequestError, "no model 'gpt-4'"):
        openai.ChatCompletion.create(messages=MESSAGES, **{**at(url), "model": "gpt-4"})
    with raises(openai.error.AuthenticationError, "API key"):
        openai.ChatCompletion.create(messages=MESSAGES, api_key="wrong", **at(url))


@check
def error_in_a_stream(url):
    with raises(openai.error.APIError, "deadline_s"):
        long = {"max_tokens": 900, "ignore_eos": True, "deadline_s": 0.3}
        for _ in openai.Completion.create(prompt=QUESTION, stream=True, **long, **at(url)):
            pass


@needs("tools")
def forced_tool(url):
    """It knows nothing of them, and passes them on."""
    (call,) = openai.ChatCompletion.create(messages=MESSAGES, **FORCED, **at(url)).choices[0].message.tool_calls
    assert call.function.name == "carry" and json.loads(call.function.arguments) in ARGUMENTS


if __name__ == "__main__":
    main()
