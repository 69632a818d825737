"""`SamplingParams.structured_outputs`: one way to say the form, within limits that a request's grammar is held to."""

import json

import pytest
from structured_cases import REFUSED_FORMS

from runtime import SamplingParams, StructuredOutputsParams
from runtime.errors import InvalidRequestError
from runtime.server.client import as_arguments


@pytest.mark.parametrize("given, param, words", REFUSED_FORMS, ids=range(len(REFUSED_FORMS)))
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
