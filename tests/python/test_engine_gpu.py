"""The engine on a CUDA device: graphs, two steps in flight, no host synchronisation, determinism."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from runtime import LLM, SamplingParams
from runtime.engine import Knobs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

QUESTIONS = Path(__file__).parents[2] / "tools" / "builtin_model" / "questions.py"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def held_out_pairs(count):
    """(prompt, answer) of `count` held-out questions of every marked skill."""
    spec = importlib.util.spec_from_file_location("questions", QUESTIONS)
    questions = importlib.util.module_from_spec(spec)
    sys.modules["questions"] = questions
    spec.loader.exec_module(questions)
    return [question.completions[0] for skill in questions.SKILLS for question in questions.held_out(skill, count)]


PROMPTS = [prompt for prompt, _ in held_out_pairs(10)]


def serve(knobs=None, **arguments):
    return LLM._with_knobs(knobs or Knobs(), device="cuda", max_num_seqs=64, num_kv_blocks=4096, **arguments)


def tokens_of(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def logprobs_of(outputs):
    return [output.outputs[0].logprobs for output in outputs]


@pytest.fixture(scope="module")
def llm():
    with serve() as llm:
        yield llm


@pytest.fixture(scope="module")
def answers(llm):
    return llm.generate(PROMPTS, GREEDY)


def test_marked_accuracy_is_that_of_the_cpu(llm):
    prompts, right = zip(*held_out_pairs(50))

    def answer(llm):  # the longest answer has 49 tokens
        outputs = llm.generate(list(prompts), SamplingParams(temperature=0.0, max_tokens=64))
        return [output.outputs[0].text for output in outputs]

    def share(answers, expected):
        return sum(a == b for a, b in zip(answers, expected)) / len(expected)

    with LLM(device="cpu") as cpu:
        expected = answer(cpu)
    found = answer(llm)
    assert share(expected, right) >= 0.98
    assert share(found, right) >= 0.98
    assert share(found, expected) >= 0.99


def test_eager_run_gives_the_same_tokens_as_the_graphs(answers):
    with serve(enforce_eager=True) as eager:
        assert tokens_of(eager.generate(PROMPTS, GREEDY)) == tokens_of(answers)


@pytest.mark.parametrize("num_prompts", [1, 2, 3, 7, 8, 9, 15, 16, 17])
def test_bucket_edges_give_the_same_tokens(llm, answers, num_prompts):
    found = llm.generate(PROMPTS[:num_prompts], GREEDY)
    assert tokens_of(found) == tokens_of(answers)[:num_prompts]


def test_one_step_in_flight_gives_the_same_tokens_as_two(answers):
    with serve(Knobs(num_steps_in_flight=1)) as one:
        assert tokens_of(one.generate(PROMPTS, GREEDY)) == tokens_of(answers)


def test_preempted_requests_end_with_the_same_tokens(answers):
    with serve(Knobs(preempt_every=3)) as shaken:
        assert tokens_of(shaken.generate(PROMPTS, GREEDY)) == tokens_of(answers)


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(temperature=0.8, top_p=0.9, top_k=20, seed=5, max_tokens=24),
        SamplingParams(
            temperature=0.8, presence_penalty=0.5, repetition_penalty=1.1, logprobs=3, seed=5, max_tokens=24
        ),
    ],
    ids=["greedy", "filtered", "penalised"],
)
def test_serving_never_waits_for_the_device(llm, params):
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = llm.generate(PROMPTS, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(output.finished for output in outputs)


def test_serving_allocates_nothing_lasting(llm):
    llm.generate(PROMPTS, GREEDY)
    before = torch.cuda.memory_allocated()
    llm.generate(PROMPTS, GREEDY)
    assert torch.cuda.memory_allocated() == before


def test_seeded_draws_do_not_depend_on_the_batch(llm):
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=24)
    together = tokens_of(llm.generate(PROMPTS[:16], params))
    alone = [tokens_of(llm.generate([prompt], params))[0] for prompt in PROMPTS[:16]]
    assert together == alone


def test_deterministic_answers_are_bitwise_the_same_alone_and_together():
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=24, logprobs=2)
    with serve(deterministic=True) as llm:
        together = llm.generate(PROMPTS[:64], params)
        llm.reset_prefix_cache()
        alone = [llm.generate([prompt], params)[0] for prompt in PROMPTS[:8]]
    with serve(deterministic=True, max_num_batched_tokens=32, enable_prefix_caching=False) as chunked:
        pieces = chunked.generate(PROMPTS[:64], params)
    assert tokens_of(pieces) == tokens_of(together)
    assert logprobs_of(pieces) == logprobs_of(together)
    assert tokens_of(alone) == tokens_of(together)[:8]
    assert logprobs_of(alone) == logprobs_of(together)[:8]


def test_scores_are_those_of_the_cpu(llm):
    with LLM(device="cpu", num_kv_blocks=256) as reference:
        expected = reference.score("12+35=", "47")
    torch.testing.assert_close(torch.tensor(llm.score("12+35=", "47")), torch.tensor(expected), atol=1e-3, rtol=0)
