"""What a request may say of tools, and what it is told otherwise."""

import httpx
import pytest
from scripted_server import ScriptedServer, make_tokenizer
from tool_templates import ASKED, HERMES, TIME, TOOLS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ScriptedServer(make_tokenizer(tmp_path_factory.mktemp("model"), HERMES)) as server:
        server.script("unasked")
        yield server


def tool(**function):
    return {"type": "function", "function": {"name": "f", **function}}


def deep(levels):
    return {"properties": deep(levels - 1)} if levels > 1 else {}


def said(**call):
    return {"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]}


REFUSED = [
    ({"tools": "f"}, "tools", "a list of"),
    ({"tools": [tool()] * 129}, "tools", "at most 128 tools; nearest: 128"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]", "'type': 'function'"),
    ({"tools": [TIME, 7]}, "tools[1]", "'type': 'function'"),
    ({"tools": [tool(name="")]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [tool(name="x" * 65)]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [TIME, TIME]}, "tools[1].function.name", "no other tool"),
    ({"tools": [tool(description=1)]}, "tools[0].function.description", "a text"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "JSON Schema"),
    ({"tools": [tool(parameters=deep(33))]}, "tools[0].function.parameters", "at most 32 levels"),
    ({"tools": [tool(description="x" * 70_000)]}, "tools[0]", "at most 65536 bytes"),
    ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice", "contradict"),
    ({"tool_choice": "required", "tools": [tool(parameters={"a": "x" * 60_000, "b": "ü" * 900})]}, "tools", "65536"),
    ({"tool_choice": "always"}, "tool_choice", "'none', 'auto', 'required'"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "'none', 'auto', 'required'"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "one of the tools"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "one of the tools"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice", "where there are no tools; nearest: auto"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "bool"),
    ({"functions": [{"name": "f"}]}, "functions", "use tools"),
    ({"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages[0]", "use tools"),
    ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0]", "use tools"),
    ({"messages": [*ASKED, {"role": "tool", "content": "1"}]}, "messages[2].tool_call_id", "the id of the call"),
    ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls", "a list of calls"),
    (said(), "messages[2].tool_calls[0]", "'name'"),
    (said(function={"name": "f", "arguments": "{"}), "messages[2].tool_calls[0].function.arguments", "a JSON object"),
    (said(function={"name": "f", "arguments": "[1]"}), "messages[2].tool_calls[0].function.arguments", "a JSON object"),
    (said(function={"name": "f", "arguments": 7}), "messages[2].tool_calls[0].function.arguments", "a JSON object"),
    (
        said(function={"name": "f", "arguments": '{"a":' * 100_000}),
        "messages[2].tool_calls[0].function.arguments",
        "at most 64 levels",
    ),
]


@pytest.mark.parametrize("body, param, sentence", REFUSED, ids=[str(body)[:50] for body, _, _ in REFUSED])
def test_what_is_refused_names_its_place(server, body, param, sentence):
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": ASKED, "tools": TOOLS, **body}, timeout=30
    )
    error = response.json()["error"]
    assert error["param"] == param and sentence in error["message"] and error["code"] == "invalid_request"
    assert len(error["message"]) < 500
