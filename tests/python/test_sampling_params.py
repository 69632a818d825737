"""`SamplingParams`: every bad value is refused in one sentence, with the field, the limit and the nearest value."""

import dataclasses
import math

import pytest

from runtime import SamplingParams
from runtime.errors import InvalidRequestError

# field, bad value, words of the sentence, nearest valid value
BAD = [
    ("n", 0, "between 1 and 128", 1),
    ("n", 129, "between 1 and 128", 128),
    ("n", 1.5, "an integer", None),
    ("n", True, "an integer", None),
    ("temperature", -0.1, "0 \\(greedy\\) or between 0.01 and 2", 0),
    ("temperature", 2.5, "between 0.01 and 2", 2),
    ("temperature", math.nan, "between", None),
    ("temperature", math.inf, "between", 2),
    ("temperature", "hot", "a number", None),
    ("temperature", None, "a number", None),
    ("top_p", 0.0, "above 0 and at most 1", None),
    ("top_p", 1.1, "above 0 and at most 1", 1),
    ("top_k", -2, "0 or -1 \\(off\\)", 0),
    ("top_k", 2**40, "between 1 and", 2**31 - 1),
    ("min_p", -0.5, "between 0 and 1", 0),
    ("min_p", 1.5, "between 0 and 1", 1),
    ("presence_penalty", 2.1, "between -2 and 2", 2),
    ("frequency_penalty", -2.1, "between -2 and 2", -2),
    ("repetition_penalty", 0.0, "between 0.01 and 2", 0.01),
    ("repetition_penalty", 3, "between 0.01 and 2", 2),
    ("seed", 2**63, "-2\\*\\*63", None),
    ("seed", "x", "an integer", None),
    ("stop_token_ids", [-1], "between 0 and", 0),
    ("stop_token_ids", "12", "a list of token ids", None),
    ("stop_token_ids", list(range(63)), "at most 62", None),
    ("ignore_eos", 1, "True or False", None),
    ("max_tokens", 0, "between 1 and", 1),
    ("max_tokens", -5, "between 1 and", 1),
    ("max_tokens", 10**30, "-2\\*\\*63", None),
    ("min_tokens", -1, "between 0 and", 0),
    ("min_tokens", 17, "between 0 and 16", 16),
    ("logprobs", 21, "between 0 and 20", 20),
    ("logprobs", -1, "between 0 and 20", 0),
    ("prompt_logprobs", 21, "between 0 and 20", 20),
    ("prompt_logprobs", -1, "between 0 and 20", 0),
    ("prompt_logprobs", True, "an integer", None),
    ("logit_bias", {5: 101.0}, "between -100 and 100", 100),
    ("logit_bias", {-5: 1.0}, "between 0 and", 0),
    ("logit_bias", {"a": 1.0}, "an integer", None),
    ("logit_bias", [1], "a dict", None),
    ("logit_bias", dict.fromkeys(range(321), 1.0), "at most 320", None),
    ("allowed_token_ids", [], "at least one token id", None),
    ("allowed_token_ids", [1.5], "an integer", None),
    ("bad_words", "word", "a list of strings", None),
    ("bad_words", [7], "a list of strings", None),
    ("bad_words", [""], "between 1 and 256 characters", None),
    ("bad_words", ["x" * 257], "between 1 and 256 characters", None),
    ("bad_words", ["x"] * 129, "at most 128 strings", 128),
    ("structured_outputs", "json", "a StructuredOutputsParams", None),  # more in test_structured_outputs.py
    ("stop", 7, "a string or a list of strings", None),
    ("stop", [""], "between 1 and 256 characters", None),
    ("stop", "x" * 257, "between 1 and 256 characters", None),
    ("stop", ["x"] * 17, "at most 16 strings", 16),
    ("detokenize", "yes", "True or False", None),
    ("skip_special_tokens", 0, "True or False", None),
    ("include_stop_str_in_output", None, "True or False", None),
]


@pytest.mark.parametrize("field, value, words, nearest", BAD)
def test_bad_values_are_refused(field, value, words, nearest):
    with pytest.raises(InvalidRequestError, match=f"{field}.*{words}") as refused:
        SamplingParams(**{field: value})
    error = refused.value
    assert (error.param, error.code) == (field, "invalid_request")
    assert error.suggestion == (nearest if nearest is None else pytest.approx(nearest)) or isinstance(
        error.suggestion, str
    )
    assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    "name, nearest",
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("stop_tokens", "stop_token_ids"), ("topk", "top_k")],
)
def test_misspelt_fields_name_the_nearest(name, nearest):
    with pytest.raises(InvalidRequestError, match=f"unknown field '{name}'.*did you mean .*'{nearest}'"):
        SamplingParams(**{name: 1})


def test_every_number_is_in_the_table():
    fields = {f.name for f in dataclasses.fields(SamplingParams) if f.init}
    assert fields == {field for field, *_ in BAD}


def test_good_values_are_taken():
    params = SamplingParams(
        n=2,
        temperature=0.5,
        top_k=-1,
        seed=-5,
        stop="\n",
        stop_token_ids=(1, 2),
        max_tokens=None,
        logit_bias={3: -1},
        allowed_token_ids=[3, 4],
    )
    assert params.stop_strings == ("\n",)
    assert SamplingParams(stop=None).stop_strings == ()
    assert SamplingParams(temperature=0.0) == SamplingParams(temperature=0.0)


def test_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 3
    with pytest.raises(TypeError):
        SamplingParams(1)
    assert dataclasses.replace(SamplingParams(seed=3), n=4) == SamplingParams(seed=3, n=4)


def test_stop_strings_need_text():
    with pytest.raises(InvalidRequestError, match="detokenize=False"):
        SamplingParams(stop="x", detokenize=False)
