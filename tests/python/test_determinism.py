"""With `deterministic=True` tokens and logprobs are the same bit for bit, however a request is run."""

import random
import time

import pytest

from runtime import LLM, SamplingParams
from runtime.engine import Knobs

RNG = random.Random(5)
SHARED = [RNG.randrange(2, 384) for _ in range(37)]
PROMPTS = [
    SHARED[: RNG.randrange(1, 37)] + [RNG.randrange(2, 384) for _ in range(RNG.randrange(1, 60))] for _ in range(9)
]
PARAMS = [
    SamplingParams(
        temperature=(0.0, 0.8)[i % 2],
        top_p=(1.0, 0.9, 1.0)[i % 3],
        repetition_penalty=(1.0, 1.0, 1.2)[i % 3],
        seed=i,
        max_tokens=12 + i,
        logprobs=2,
        ignore_eos=True,
    )
    for i in range(len(PROMPTS))
]
SMALL = {"block_size": 4, "num_kv_blocks": 400, "max_model_len": 128, "deterministic": True}


def outputs_of(llm, prompts=PROMPTS, params=PARAMS):
    return [
        (out.outputs[0].token_ids, [sorted((t, p.logprob) for t, p in one.items()) for one in out.outputs[0].logprobs])
        for out in llm.generate(prompts, params)
    ]


@pytest.fixture(scope="module")
def alone(tiny_llama):
    """Each request by itself, its prompt in one step, nothing cached."""
    with LLM(str(tiny_llama), **SMALL, enable_prefix_caching=False) as llm:
        return [outputs_of(llm, [prompt], [params])[0] for prompt, params in zip(PROMPTS, PARAMS)]


@pytest.mark.parametrize(
    "arguments, knobs",
    [
        ({}, Knobs()),
        ({"max_num_batched_tokens": 7, "max_num_seqs": 3}, Knobs()),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 16}, Knobs(num_steps_in_flight=2)),
        ({"enable_prefix_caching": False}, Knobs(preempt_every=3)),
        ({}, Knobs(preempt_every=2)),
        ({"max_num_batched_tokens": 24}, Knobs(preempt_every=2, num_steps_in_flight=2)),
        ({"num_kv_blocks": 36, "admission": "none"}, Knobs()),  # so few that requests preempt each other
        ({"num_kv_blocks": 36, "admission": "none"}, Knobs(num_steps_in_flight=2)),
    ],
    ids=["batch", "chunks", "async", "preempt", "preempt-cached", "preempt-async", "few-blocks", "few-blocks-async"],
)
def test_batch_chunks_cache_preemption_and_depth_change_nothing(tiny_llama, alone, arguments, knobs):
    with LLM._with_knobs(knobs, str(tiny_llama), **{**SMALL, **arguments}) as llm:
        assert outputs_of(llm) == alone
        assert outputs_of(llm) == alone  # now with a cache, where there is one
        stats = llm.stats
        if knobs.preempt_every or "num_kv_blocks" in arguments:
            assert stats.num_preemptions > 0
        assert stats.num_free_blocks == stats.num_blocks


def test_preempted_requests_answer_as_if_uninterrupted(tiny_llama, alone):
    """200 random schedules: which requests, in which order, between which steps, in how many blocks."""
    num_preemptions = 0
    for seed in range(20):
        rng = random.Random(seed)
        arguments = {
            "max_num_batched_tokens": rng.choice((5, 16, 40)),
            "max_num_seqs": rng.randrange(2, 9),
            "num_kv_blocks": rng.choice((33, 40, 400)),
            "enable_prefix_caching": rng.random() < 0.7,
        }
        knobs = Knobs(preempt_every=rng.randrange(1, 7), num_steps_in_flight=rng.randrange(1, 3))
        with LLM._with_knobs(knobs, str(tiny_llama), **{**SMALL, **arguments}) as llm:
            for _ in range(10):
                chosen = rng.sample(range(len(PROMPTS)), 3)
                handles = []
                for i in chosen:
                    handles.append(llm.submit(PROMPTS[i], PARAMS[i]))
                    time.sleep(rng.choice((0.0, 0.001, 0.003)))
                for i, handle in zip(chosen, handles):
                    assert handle.result(60).outputs[0].token_ids == alone[i][0], f"seed {seed}, request {i}"
            num_preemptions += llm.stats.num_preemptions
    assert num_preemptions > 200


def test_scores_do_not_depend_on_the_cache(tiny_llama):
    with LLM(str(tiny_llama), **SMALL, max_num_batched_tokens=16) as llm:
        cold = llm.score(PROMPTS[0], PROMPTS[1])
        llm.generate(PROMPTS, PARAMS)
        assert llm.score(PROMPTS[0], PROMPTS[1]) == cold


def test_two_steps_in_flight_change_no_greedy_token(tiny_llama, llm):
    params = SamplingParams(temperature=0.0, max_tokens=30)
    prompts = ["the quick", "brown fox", "x", "lazy dog " * 9]
    expected = [out.outputs[0] for out in llm.generate(prompts, params)]
    with LLM._with_knobs(Knobs(num_steps_in_flight=2), str(tiny_llama)) as deep:
        assert [out.outputs[0] for out in deep.generate(prompts, params)] == expected
        stop = expected[3].text[5:8]
        cut = SamplingParams(temperature=0.0, max_tokens=30, stop=[stop])
        assert deep.generate(prompts[3], cut)[0].outputs[0] == llm.generate(prompts[3], cut)[0].outputs[0]
