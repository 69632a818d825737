"""instructor: answers as pydantic models, by JSON in the text or by what the server offers for it."""

import instructor
import openai
from checks import API_KEY, MESSAGES, MODEL, check, main, needs, raises
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, ConfigDict, RootModel

END = 5  # the built-in model's <|end|>


class Sum(RootModel[int]):
    """The sum."""


class Flag(BaseModel):
    """Whether it holds. With further keys allowed the built-in model would never end."""

    model_config = ConfigDict(extra="forbid")
    holds: bool


def ask(url, mode, kind, key=API_KEY, **fields):
    """(an instance of `kind`, the completion that it was read from)."""
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key, max_retries=0), mode=mode)
    asked = {"model": MODEL, "messages": list(MESSAGES), "temperature": 0, "max_tokens": 64, "max_retries": 0}
    return client.chat.completions.create_with_completion(response_model=kind, **{**asked, **fields})


@check
def markdown_json(url):
    """The built-in model writes no JSON by itself: a number is all that it can say here."""
    server = openai.OpenAI(base_url=url.removesuffix("/v1"), api_key=API_KEY)
    asked = {"prompt": "123456789", "add_special_tokens": False}
    digits = server.post("/tokenize", body=asked, cast_to=dict[str, object])["tokens"]
    only = {"allowed_token_ids": [*digits, END], "min_tokens": 2}
    found, completion = ask(url, instructor.Mode.MD_JSON, Sum, extra_body=only)
    assert found.root == int(completion.choices[0].message.content) > 0


@check
def usage(url):
    with raises(IncompleteOutputException) as caught:
        ask(url, instructor.Mode.MD_JSON, Flag, max_tokens=8)
    assert caught.value.last_completion.usage.completion_tokens == 8


@check
def errors(url):
    for fields, words in (
        ({"temperature": 3}, "nearest: 2"),
        ({"model": "gpt-4"}, "no model"),
        ({"key": "x"}, "API key"),
    ):
        with raises(InstructorRetryException, words):
            ask(url, instructor.Mode.MD_JSON, Sum, **fields)


@needs("response_format")
def json_mode(url):
    found, _ = ask(url, instructor.Mode.JSON_SCHEMA, Flag, max_tokens=256)  # the model likes white space
    assert isinstance(found, Flag)


@needs("tools")
def tools_mode(url):
    found, completion = ask(url, instructor.Mode.TOOLS, Flag)
    assert isinstance(found, Flag) and completion.choices[0].message.tool_calls


if __name__ == "__main__":
    main()
