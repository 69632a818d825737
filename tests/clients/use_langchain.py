"""langchain-openai: chat and completion models, whole, streamed, in batches."""

import asyncio

import openai
from checks import ANSWER, API_KEY, MODEL, QUESTION, check, main, needs, raises
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict


def chat_at(url: str, **fields) -> ChatOpenAI:
    return ChatOpenAI(
        **{"base_url": url, "api_key": API_KEY, "model": MODEL, "temperature": 0, "max_retries": 0, **fields}
    )


@check
def completion(url):
    model = OpenAI(base_url=url, api_key=API_KEY, model=MODEL, temperature=0, max_tokens=16, max_retries=0)
    assert model.invoke(QUESTION) == "".join(model.stream(QUESTION)) == ANSWER
    assert model.batch([QUESTION, "40+2="]) == [ANSWER, "42"]


@check
def chat(url):
    assert chat_at(url).invoke(QUESTION).content == ANSWER
    assert chat_at(url).invoke([SystemMessage("You are a calculator."), HumanMessage(QUESTION)]).content
    with_logprobs = chat_at(url, logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert [one["token"] for one in with_logprobs.response_metadata["logprobs"]["content"]][:2] == ["4", "7"]


@check
def usage(url):
    for found in (chat_at(url).invoke(QUESTION), sum_of(chat_at(url, stream_usage=True).stream(QUESTION))):
        counted = found.usage_metadata
        assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]
        assert counted["output_tokens"] == 3


@check
def stream(url):
    chunks = list(chat_at(url).stream(QUESTION))
    assert sum_of(chunks).content == ANSWER and len(chunks) > 1


@check
def asynchronous(url):
    async def ask():
        return await asyncio.gather(*(chat_at(url).ainvoke(QUESTION) for _ in range(8)))

    assert {found.content for found in asyncio.run(ask())} == {ANSWER}


@check
def errors(url):
    with raises(openai.BadRequestError, "nearest: 2"):
        chat_at(url, temperature=3).invoke(QUESTION)
    with raises(openai.NotFoundError, "no model 'gpt-4'"):
        chat_at(url, model="gpt-4").invoke(QUESTION)
    with raises(openai.AuthenticationError, "API key"):
        chat_at(url, api_key="wrong").invoke(QUESTION)


class Flag(BaseModel):
    """Whether it holds. With further keys allowed the built-in model would never end."""

    model_config = ConfigDict(extra="forbid")
    holds: bool


@needs("response_format")
def structured_output(url):
    found = chat_at(url).with_structured_output(Flag, method="json_schema").invoke(QUESTION)
    assert isinstance(found, Flag)


@needs("tools")
def forced_tool(url):
    (call,) = chat_at(url).bind_tools([Flag], tool_choice="Flag").invoke(QUESTION).tool_calls
    assert call["name"] == "Flag" and set(map(type, call["args"].values())) == {bool}
    assert isinstance(chat_at(url).with_structured_output(Flag, method="function_calling").invoke(QUESTION), Flag)
    streamed = sum_of(chat_at(url).bind_tools([Flag], tool_choice="any").stream(QUESTION))
    assert [one["args"] for one in streamed.tool_calls] == [call["args"]]


def sum_of(chunks):
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


if __name__ == "__main__":
    main()
