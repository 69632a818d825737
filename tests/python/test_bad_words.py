"""`bad_words` never come, as in transformers, however requests are scheduled, and neighbours notice nothing."""

import dataclasses
import re

import pytest
import torch
from schedules import under_each_schedule

from runtime import LLM, SamplingParams, StructuredOutputsParams
from runtime.errors import InvalidRequestError

PROMPTS = [[17 + i, 18, 19, 20 + i, *range(40, 40 + 5 * i)] for i in range(8)]
ALL = range(len(PROMPTS))
SMALL = {"block_size": 4, "num_kv_blocks": 400, "max_model_len": 256, "deterministic": True}


def sequences_of(tokenizer, words):
    spelt = [text for word in words for text in (word, f" {word}")]
    return [tokenizer.encode(text, add_special_tokens=False) for text in spelt]


def contains(token_ids, sequence):
    return any(token_ids[i : i + len(sequence)] == sequence for i in range(len(token_ids)))


def words_in(llm, token_ids, lengths):
    """Texts that the tokenizer splits into just the tokens of some part of `token_ids`, one of each of these lengths,
    as far as there are any."""
    found = []
    for length in lengths:
        for start in range(len(token_ids) - length):
            part = token_ids[start : start + length]
            word = llm.tokenizer.decode(part, skip_special_tokens=False)
            if 1 not in part and llm.tokenizer.encode(word, add_special_tokens=False) == part:
                found.append(word)
                break
    return found


def greedy(**params):
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 32, "ignore_eos": True, **params})


def words_of(llm):
    """By prompt: words of one, two and three tokens of its greedy answer."""
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], greedy())
    return [words_in(llm, out.outputs[0].token_ids, (1, 2, 3)) for out in outputs]


@pytest.fixture(scope="module")
def taken(llm):
    found = words_of(llm)
    assert all(found) and sum(len(words) == 3 for words in found) > 2
    return found


@pytest.mark.parametrize("lengths", [slice(0, 1), slice(1, 3), slice(0, 3)], ids=["one-token", "longer", "all"])
def test_greedy_answers_are_those_of_transformers(llm, reference, taken, lengths):
    num_changed = 0
    for prompt, words in zip(PROMPTS, taken):
        if not (words := words[lengths]):
            continue
        banned = sequences_of(llm.tokenizer, words)
        ids = torch.tensor([prompt])
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
        expected = reference.generate(ids, bad_words_ids=banned, **given)[0, len(prompt) :].tolist()
        params = SamplingParams(temperature=0.0, max_tokens=32, min_tokens=32, bad_words=words)
        (out,) = llm.generate({"prompt_token_ids": prompt}, params)
        assert out.outputs[0].token_ids == expected
        assert not any(contains(expected, sequence) for sequence in banned)
        plain = llm.generate({"prompt_token_ids": prompt}, greedy())[0].outputs[0].token_ids
        num_changed += plain != expected
    assert num_changed > 1


# ---- beside others, and however it is scheduled -------------------------------------------------


def mixed(taken):
    """By prompt: every other one without words; the others random or greedy, with further limits in turn."""
    more = [
        {},
        {"logit_bias": {40: 5.0, 41: -100.0}, "min_tokens": 6},
        {"allowed_token_ids": list(range(1, 300)), "top_p": 0.9},
        {"presence_penalty": 1.0, "repetition_penalty": 1.3},
    ]
    return [
        SamplingParams(
            bad_words=None if i % 2 else words,
            temperature=(0.0, 1.0)[i // 2 % 2],
            seed=i,
            max_tokens=40,
            logprobs=1,
            **more[i // 2],
        )
        for i, words in enumerate(taken)
    ]


def outputs_of(llm, params, which=ALL):
    outputs = llm.generate([{"prompt_token_ids": PROMPTS[i]} for i in which], [params[i] for i in which])
    return [
        (c.token_ids, c.finish_reason, [sorted((t, p.logprob) for t, p in one.items()) for one in c.logprobs])
        for out in outputs
        for c in out.outputs
    ]


def alone(llm, params):
    """What `outputs_of` gives, one request after the other; checked."""
    found = [outputs_of(llm, params, [i])[0] for i in ALL]
    for (token_ids, *_), one in zip(found, params):
        banned = sequences_of(llm.tokenizer, one.bad_words or [])
        assert not any(contains(token_ids, sequence) for sequence in banned)
    return found


@pytest.fixture(scope="module")
def each_alone(tiny_llama, taken):
    with LLM(str(tiny_llama), **SMALL, enable_prefix_caching=False) as llm:
        return alone(llm, mixed(taken))


@under_each_schedule
def test_batch_chunks_preemption_and_depth_change_nothing(tiny_llama, taken, each_alone, arguments, knobs):
    with LLM._with_knobs(knobs, str(tiny_llama), **{**SMALL, **arguments}) as llm:
        assert outputs_of(llm, mixed(taken)) == each_alone
        assert llm.stats.num_running == llm.stats.num_waiting == 0
        assert llm.stats.num_preemptions > 0 or not knobs.preempt_every


@pytest.mark.gpu
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_on_a_gpu_they_hold_one_step_ahead(enforce_eager):
    with LLM(device="cuda", deterministic=True, enforce_eager=enforce_eager, max_num_seqs=16) as llm:
        params = mixed(words_of(llm))
        assert outputs_of(llm, params) == alone(llm, params)


def test_each_of_n_completions_has_its_own_state(llm, taken):
    params = SamplingParams(n=4, seed=3, max_tokens=40, ignore_eos=True, bad_words=taken[2])
    (out,) = llm.generate({"prompt_token_ids": PROMPTS[2]}, params)
    expected = [
        llm.generate(
            {"prompt_token_ids": PROMPTS[2]},
            SamplingParams(seed=3 + i, max_tokens=40, ignore_eos=True, bad_words=taken[2]),
        )
        for i in range(4)
    ]
    assert [c.token_ids for c in out.outputs] == [one[0].outputs[0].token_ids for one in expected]


# ---- with other limits --------------------------------------------------------------------------


def test_the_sure_answer_of_the_builtin_model_is_another():
    with LLM(device="cpu") as llm:
        assert llm.generate("12+35=", greedy(ignore_eos=False))[0].outputs[0].text == "47"
        for words in (["47"], ["7"], ["4"], ["47", "46", "48"]):
            text = llm.generate("12+35=", greedy(ignore_eos=False, bad_words=words))[0].outputs[0].text
            assert text and not any(word in text for word in words)
        biased = greedy(logit_bias={llm.tokenizer.token_to_id("7"): 100.0}, bad_words=["7"], max_tokens=8)
        assert "7" not in llm.generate("12+35=", biased)[0].outputs[0].text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_goes_around_them(llm, temperature):
    pytest.importorskip("llguidance")
    form = StructuredOutputsParams(regex="[a-c]{6}")  # whose tokens are letters
    params = SamplingParams(structured_outputs=form, temperature=temperature, seed=1, max_tokens=40, min_tokens=3)
    for words, rest in ((["a"], "[bc]{6}"), (["ab", "ba", "b"], "[ac]{6}"), (["cb", "ca", "bab", "a"], "b{0,6}c{0,6}")):
        (out,) = llm.generate("the", dataclasses.replace(params, bad_words=words))
        assert out.outputs[0].finish_reason == "stop" and re.fullmatch(rest, out.outputs[0].text)


def test_a_form_that_they_leave_no_token_of_is_an_error(llm):
    pytest.importorskip("llguidance")
    form = StructuredOutputsParams(regex="[a-c]{3}")
    with pytest.raises(
        InvalidRequestError, match="after 2 tokens no token is allowed by both the grammar and bad_words"
    ):
        llm.generate("the", SamplingParams(structured_outputs=form, bad_words=["b", "c", "aaa"]))


def test_what_they_leave_nothing_of_is_refused(llm):
    a, b = llm.tokenizer.token_to_id("a"), llm.tokenizer.token_to_id("b")
    with pytest.raises(InvalidRequestError, match="no token that bad_words and min_tokens leave"):
        llm.submit("the", SamplingParams(allowed_token_ids=[a, b], bad_words=["a", "b"]))
    # an end that is ignored is a token like others, also before min_tokens
    alternate = SamplingParams(allowed_token_ids=[1, a], bad_words=["aa"], ignore_eos=True, min_tokens=8, max_tokens=8)
    assert 1 in llm.generate("the", alternate)[0].outputs[0].token_ids
    with pytest.raises(
        InvalidRequestError, match="after 1 tokens no token is allowed by both allowed_token_ids and bad_w"
    ):
        llm.generate("the", SamplingParams(allowed_token_ids=[a], bad_words=["aa", "aaa"], ignore_eos=True))


def test_more_biases_than_a_row_holds(llm):
    biases = {i: 0.5 for i in range(64, 64 + 319)}
    params = greedy(logit_bias=biases, max_tokens=8)
    first = llm.generate("the", params)[0].outputs[0]
    word = words_in(llm, first.token_ids, (1,))[0]
    (out,) = llm.generate("the", greedy(logit_bias=biases, max_tokens=8, bad_words=[word, "x", "y"]))
    assert first.token_ids != out.outputs[0].token_ids
    assert not any(contains(out.outputs[0].token_ids, one) for one in sequences_of(llm.tokenizer, [word, "x", "y"]))


def test_they_need_a_tokenizer(tiny_llama):
    with LLM(str(tiny_llama), skip_tokenizer_init=True) as llm:
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init"):
            llm.generate({"prompt_token_ids": [5]}, SamplingParams(bad_words=["x"]))
