"""Tool calls in the text of an answer, wherever its pieces end."""

import json
import random
import time

import pytest

from runtime.server.tool_parser import FORMATS, Arguments, CallBegins, CallEnds, JsonCallParser, Text

NAMES = {"get_weather", "f", "g-2"}


def parse(format, *pieces):
    """What the parts add up to: texts, and [name, arguments, raw] of calls, in order."""
    parser, found, num_calls = JsonCallParser(FORMATS[format], NAMES), [], 0
    for part in [part for piece in pieces for part in parser.feed(piece)] + parser.finish():
        if isinstance(part, Text) and found and isinstance(found[-1], str):
            found[-1] += part.text
        elif isinstance(part, Text):
            found.append(part.text)
        elif isinstance(part, CallBegins):
            assert part.index == num_calls
            num_calls += 1
            found.append([part.name, "", None])
        elif isinstance(part, Arguments):
            assert part.text
            found[-1][1] += part.text
        elif isinstance(part, CallEnds):
            found[-1][2] = part.raw
    return found


def call(name, arguments="{}", raw=None):
    return [name, arguments, raw]


BROKEN = '{"name": "f", "arguments": {"a": tru}}'
CUT = '<tool_call>\n{"name": "f", "arguments": {"a": "b'
HERMES = [
    ("no call at all", ["no call at all"]),
    ("  spaces stay \n", ["  spaces stay \n"]),
    ("", []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": [1, "}]"]}}\n</tool_call>', [call("f", '{"a": [1, "}]"]}')]),
    ('Well.\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n', ["Well.", call("f")]),
    (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {"b": {}}, "name": "g-2"}\n</tool_call>\nand \n\n text',
        [call("f", '{"a": 1}'), call("g-2", '{"b": {}}'), "\nand \n\n text"],
    ),
    ('<tool_call>{"name": "f"}</tool_call>', [call("f")]),
    (
        '<tool_call>{"name": "f", "arguments": {"q": "\\"</tool_call>\\\\"}}',
        [call("f", '{"q": "\\"</tool_call>\\\\"}')],
    ),
    ('<tool_call>{"type": "function", "id": 7, "name": "f", "arguments": {}}', [call("f")]),
    ('<tool_call>{"name": "f", "arguments": {}, "why": [1, {"a": "]"}], "n": -1e5}</tool_call>.', [call("f"), "."]),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', [call("f", '{"a": 1}')]),  # a brace is missing
    ('<tool_call>{"name": "f", "arguments": {"a": 1}', [call("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name": "f", "arguments": {}}', [call("f"), call("f")]),
    ('<tool_call>{"name": "f", "parameters": {"é": "ü😀"}}', [call("f", '{"é": "ü😀"}')]),
    # what is no call is text
    ("a <tool_call> b", ["a <tool_call> b"]),
    ("<tool_call", ["<tool_call"]),
    ("<tool_call>\n ", ["<tool_call>\n "]),
    ("</tool_call> <tool_<tool_", ["</tool_call> <tool_<tool_"]),
    ('<tool_call>{"name": "nope", "arguments": {}}</tool_call>', None),
    ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', None),
    ('<tool_call>{"name": "f", "arguments": null}</tool_call>', None),
    ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', None),
    ('<tool_call>{"arguments": {"a": 1}}</tool_call>', None),
    ('<tool_call>{"nam', None),
    ('<tool_call>{"na\\u006de": "f"}', None),
    ('<tool_call>["f", {}]</tool_call>', None),
    ('<tool_call>{"' + "k" * 500 + '": 1}', None),
    ('<tool_call> <tool_call>{"name": "f", "arguments": {}}</tool_call>', ["<tool_call>", call("f")]),
    # what goes wrong later has begun
    (f" <tool_call>{BROKEN}</tool_call>", [call("f", '{"a": tru}', f" <tool_call>{BROKEN}"), "</tool_call>"]),
    (CUT, [call("f", '{"a": "b', CUT)]),
    ('<tool_call>{"name": "f", "arguments": {]', [call("f", "{", '<tool_call>{"name": "f", "arguments": {'), "]"]),
]
LLAMA = [
    ('{"name": "f", "parameters": {"a": 1}}', [call("f", '{"a": 1}')]),
    (
        ' {"name": "f", "parameters": {"a": 1}}; {"name": "g-2", "parameters": {}}\n',
        [call("f", '{"a": 1}'), call("g-2")],
    ),
    ('{"name": "f", "parameters": {}}\n{"name": "f", "parameters": {}}', [call("f"), call("f")]),
    ('<|python_tag|>{"type": "function", "name": "f", "parameters": {}}', [call("f")]),
    ('So: <|python_tag|> {"name": "f", "arguments": {}}', ["So:", call("f")]),
    ('{"name": "f", "parameters": {}}; that was it', [call("f"), " that was it"]),
    ('<|python_tag|>search.call(query="x")', None),
    ('Say {"name": "f", "parameters": {}}', None),
    ('{"answer": {"name": "f", "parameters": {}}}', None),
    ('{"name": "nope", "parameters": {}}', None),
    ("{", None),
    ("{}", None),
    ('<tool_call>{"name": "f", "arguments": {}}', None),
]
CASES = [("hermes", *case) for case in HERMES] + [("llama3_json", *case) for case in LLAMA]


@pytest.mark.parametrize("format, text, expected", CASES, ids=[f"{case[0]}-{case[1][:60]!r}" for case in CASES])
def test_calls_and_text(format, text, expected):
    expected = [text] if expected is None else expected
    assert parse(format, text) == expected
    assert parse(format, *text) == expected
    for at in range(len(text)):
        assert parse(format, text[:at], text[at:]) == expected


FRAGMENTS = ["<tool_call>", "</tool_call>", "<|python_tag|>", '{"name": "f", "arguments": {', '"a": [{}, "', '{"b": ']
FRAGMENTS += ['"', "}", "]", "{", "[", ",", ":", ";", "\\", " ", "\n", "text", '"}}', "}}", "<tool_", "<", "1e5", "nul"]
FRAGMENTS += ['<tool_call>{"name": "f", "arguments": {}', '<tool_call> {"arguments": {"a": []}, "name": "g-2"}'] * 2
FRAGMENTS += ['"name": "f"', '"parameters": {}', '{"name": "g-2"', '{"id":', "é😀"]


STARTS = ["", "", '{"name": "f", "parameters": {', ' <|python_tag|>{"name": "f", "arguments": {}}']


@pytest.mark.parametrize("format", FORMATS)
def test_where_pieces_end_makes_no_difference(format):
    rng = random.Random(7)
    num_calls = 0
    for _ in range(3000):
        text = rng.choice(STARTS) + "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 14)))
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 6)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
        found = parse(format, text)
        assert parse(format, *pieces) == found, (text, cuts)
        assert parse(format, *text) == found, text
        whole = [part[1] for part in found if isinstance(part, list) and part[2] is None]
        assert all(isinstance(json.loads(arguments), dict) for arguments in whole)
        num_calls += len(whole)
    assert num_calls > 50


def test_a_calls_name_comes_first_and_its_arguments_as_they_come():
    parser, seen = JsonCallParser(FORMATS["hermes"], NAMES), []
    for piece in (
        "<tool_",
        'call>\n{"name": "f"',
        ', "arguments"',
        ": {",
        '"a": "',
        "x",
        "y",
        '"}',
        "}\n",
        "</tool_call>",
    ):
        seen.append(parser.feed(piece))
    assert seen[:3] == [[], [], []]
    assert seen[3:8] == [
        [CallBegins(0, "f"), Arguments(0, "{")],
        [Arguments(0, '"a": "')],
        [Arguments(0, "x")],
        [Arguments(0, "y")],
        [Arguments(0, '"}')],
    ]
    assert seen[8:] == [[CallEnds(0, None)], []] and parser.finish() == []


def test_text_is_held_back_only_while_it_may_be_a_call():
    parser = JsonCallParser(FORMATS["hermes"], NAMES)
    assert parser.feed("a <to") == [Text("a")]
    assert parser.feed("ol> b") == [Text(" <tool> b")]
    llama = JsonCallParser(FORMATS["llama3_json"], NAMES)
    assert llama.feed('{"answer"') == [Text('{"answer"')]  # no key of a call


HOSTILE = ["<tool_", "<|python_", "<tool_call>", " ", '<tool_call>{"name":"f","arguments":{"a":', '<tool_call>{"']
HOSTILE += ['{"name":"f","parameters":{"a":"\\"', '{"type":{"a":', '<tool_call>{"name":"f","arguments":{}}', "{", "\n;"]
MEGABYTE = 1 << 20


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear(format, unit):
    text = unit * (MEGABYTE // len(unit))
    started = time.perf_counter()
    parse(format, text)
    if unit in HOSTILE[3:5]:  # held back for long
        parse(format, *(text[at : at + 32] for at in range(0, len(text), 32)))
    assert time.perf_counter() - started < 15  # quadratic time would be minutes
