"""`SamplingParams.structured_outputs`: one way to say the form, within limits that a request's grammar is held to."""

import json

import pytest

from runtime import SamplingParams, StructuredOutputsParams
from runtime.errors import InvalidRequestError
from runtime.server.client import as_arguments

# what is given, the field that the error names, words of its sentence
BAD = [
    ({}, "structured_outputs", "exactly one of .* given: none"),
    ({"json_object": False}, "structured_outputs", "given: none"),
    ({"json": {}, "regex": "a"}, "structured_outputs", "given: json and regex"),
    ({"json_schema": {}}, "structured_outputs.json_schema", "did you mean .*'json'"),
    ([1], "structured_outputs", "must be a StructuredOutputsParams"),
    ({"json": 7}, "structured_outputs.json", "a JSON schema"),
    ({"json": "[1]"}, "structured_outputs.json", "a JSON schema"),
    ({"json": "{"}, "structured_outputs.json", "is not JSON"),
    ({"json": {"const": float("nan")}}, "structured_outputs.json", "is not JSON"),
    ({"json": {"const": {1, 2}}}, "structured_outputs.json", "is not JSON"),
    ({"json": {"const": "\ud800"}}, "structured_outputs.json", "surrogate"),
    ({"json": '{"a":' * 65 + "1" + "}" * 65}, "structured_outputs.json", "at most 64 deep"),
    ({"json": "[" * 60_000 + "]" * 60_000}, "structured_outputs.json", "at most 64 deep"),
    ({"json": {"enum": ["x" * 100] * 1500}}, "structured_outputs.json", "at most 131072"),
    ({"json": {"allOf": [{"$ref": "#"}] * 1001}}, "structured_outputs.json", "at most 1000"),
    ({"regex": ""}, "structured_outputs.regex", "a regular expression"),
    ({"regex": "(" * 30_000 + ")" * 30_000}, "structured_outputs.regex", "at most 8192"),
    ({"choice": []}, "structured_outputs.choice", "at least one text"),
    ({"choice": "yes"}, "structured_outputs.choice", "a list"),
    ({"choice": ["a", ""]}, "structured_outputs.choice", "none of them empty"),
    ({"choice": [str(i) for i in range(4097)]}, "structured_outputs.choice", "at most 4096"),
    ({"choice": ["x" * 70_000]}, "structured_outputs.choice", "at most 65536"),
    ({"grammar": " "}, "structured_outputs.grammar", "Lark"),
    ({"grammar": "start: /a/\n" * 1000}, "structured_outputs.grammar", "at most 1000"),
    ({"grammar": "x" * 70_000}, "structured_outputs.grammar", "at most 65536"),
    ({"json_object": 1}, "structured_outputs.json_object", "True or False"),
    ({"json_object": True, "disable_any_whitespace": "no"}, "structured_outputs.disable_any_whitespace", "True or"),
]


@pytest.mark.parametrize("given, param, words", BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_a_bad_form_is_refused_by_name(given, param, words):
    with pytest.raises(InvalidRequestError, match=words) as caught:
        SamplingParams(structured_outputs=given)
    assert caught.value.param == param and len(str(caught.value)) < 400


def test_ignore_eos_contradicts_it():
    with pytest.raises(InvalidRequestError, match="ignore_eos=True"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)


@pytest.mark.parametrize(
    "given",
    [
        {"json": {"type": "object", "properties": {"é": {"const": 1.5}}}},
        {"json": '{"type": "integer"}', "disable_any_whitespace": True},
        {"regex": "a+"},
        {"choice": ("b", "a", "b")},
        {"grammar": 'start: "a"'},
        {"json_object": True},
    ],
)
def test_plain_arguments_make_an_equal_one(given):
    params = SamplingParams(structured_outputs=given)
    arguments = json.loads(json.dumps(as_arguments(params)))
    again = SamplingParams(**arguments)
    assert again.structure is not None and params.structure is not None
    assert (again.structure.kind, again.structure.text) == (params.structure.kind, params.structure.text)
    assert again.structure.disable_any_whitespace == params.structure.disable_any_whitespace


def test_a_dict_and_an_object_mean_the_same():
    schema = {"type": "integer"}
    found = [
        SamplingParams(structured_outputs=one).structure
        for one in ({"json": schema}, {"json": json.dumps(schema)}, StructuredOutputsParams(json=schema))
    ]
    assert len({(one.kind, one.text) for one in found}) == 1


def test_a_choice_that_is_named_twice_counts_once():
    once, twice = (StructuredOutputsParams(choice=one) for one in (["b", "a"], ["b", "a", "b", "a"]))
    assert once.text == twice.text  # so they share a compiled grammar
    assert StructuredOutputsParams(choice=[str(i % 4096) for i in range(8192)]).kind == "choice"
