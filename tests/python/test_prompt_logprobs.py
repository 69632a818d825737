"""`prompt_logprobs`: those of transformers, however the prompt is computed, and the answer is the same beside them."""

import asyncio

import pytest
import torch

from runtime import LLM, SamplingParams, StructuredOutputsParams
from runtime.engine import Knobs
from runtime.errors import DeadlineExceeded, InvalidRequestError

PROMPT = "the quick brown fox jumps over the lazy dog " * 3
SHARED = {"block_size": 4, "num_kv_blocks": 256}
SCORED = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=2)
PLAIN = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def check(reference, out, num_top):
    """Every position against transformers."""
    with torch.inference_mode():
        expected = torch.log_softmax(reference(torch.tensor([out.prompt_token_ids])).logits[0], -1)
    first, *positions = out.prompt_logprobs
    assert first is None and len(positions) == len(out.prompt_token_ids) - 1
    for token, position, row in zip(out.prompt_token_ids[1:], positions, expected):
        top = row.topk(num_top).indices.tolist()
        assert set(position) == {token, *top}
        assert [position[t].rank for t in top] == list(range(1, num_top + 1))
        assert position[token].rank is None or token in top
        for candidate, one in position.items():
            assert one.logprob == pytest.approx(float(row[candidate]), abs=1e-4)


def values_of(out):
    return [position and {t: p.logprob for t, p in position.items()} for position in out.prompt_logprobs]


@pytest.mark.parametrize(
    "arguments, knobs",
    [
        ({"max_num_batched_tokens": 256}, Knobs()),
        ({"max_num_batched_tokens": 7}, Knobs()),
        ({"max_num_batched_tokens": 16}, Knobs(num_steps_in_flight=2, preempt_every=3)),
        ({"enable_prefix_caching": False}, Knobs(num_steps_in_flight=2)),
    ],
    ids=["whole", "chunks", "preempted-async", "uncached-async"],
)
@pytest.mark.parametrize("num_top", [0, 2])
def test_they_are_those_of_transformers(tiny_llama, reference, arguments, knobs, num_top):
    params = [SamplingParams(temperature=0.0, max_tokens=6, prompt_logprobs=num_top), PLAIN]
    with LLM._with_knobs(knobs, str(tiny_llama), **{**SHARED, **arguments}) as llm:
        for _ in range(2):  # with a cold and with a warm cache
            scored, plain = llm.generate([PROMPT, PROMPT], params)
            check(reference, scored, num_top)
            assert plain.prompt_logprobs is None


def test_chunks_and_a_warm_cache_change_nothing(tiny_llama):
    found = []
    for num_tokens in (256, 24):
        with LLM(str(tiny_llama), **SHARED, max_num_batched_tokens=num_tokens, deterministic=True) as llm:
            for prompt in (PROMPT, PROMPT, PROMPT[: len(PROMPT) // 2]):
                (out,) = llm.generate(prompt, SCORED)
                assert out.num_cached_tokens == out.metrics.cached_tokens == 0
                found.append((values_of(out), out.outputs[0].token_ids))
            assert llm.generate(PROMPT, PLAIN)[0].outputs[0].token_ids == found[0][1]
    assert found[0] == found[1] == found[3] == found[4]
    assert found[2] == found[5]
    half = found[2][0]
    assert found[0][0][: len(half) - 1] == half[:-1]


def test_the_answer_has_its_own_logprobs_and_there_may_be_several(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=5, logprobs=3, prompt_logprobs=1, ignore_eos=True)
    (out,) = llm.generate(PROMPT, params)
    assert [len(c.token_ids) for c in out.outputs] == [5, 5, 5]
    assert all(len(position) >= 3 for c in out.outputs for position in c.logprobs)
    assert all(len(position) <= 2 for position in out.prompt_logprobs[1:])
    (plain,) = llm.generate(PROMPT, SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=5, ignore_eos=True))
    assert [c.token_ids for c in out.outputs] == [c.token_ids for c in plain.outputs]
    prompt_len = len(out.prompt_token_ids)
    assert out.metrics.prompt_tokens == prompt_len and prompt_len < out.metrics.cached_tokens <= 2 * prompt_len


def test_a_stream_has_them_before_its_first_token(llm):
    (whole,) = llm.generate(PROMPT, SCORED)
    for chunk in llm.stream(PROMPT, SCORED):
        assert len(chunk.output.prompt_logprobs) == len(whole.prompt_token_ids)

    async def last():
        return [chunk async for chunk in llm.agenerate(PROMPT, SCORED)][-1].output

    out = asyncio.run(last())
    assert [set(p or ()) for p in out.prompt_logprobs] == [set(p or ()) for p in whole.prompt_logprobs]
    assert out.outputs[0].token_ids == whole.outputs[0].token_ids


def test_chat_has_them_too(llm):
    (out,) = llm.chat([{"role": "user", "content": "the fox"}], SCORED)
    assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(out.prompt_token_ids)


def test_beside_a_form(llm):
    pytest.importorskip("llguidance")
    params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["fox", "dog"]), prompt_logprobs=0)
    (out,) = llm.generate(PROMPT, params)
    assert out.outputs[0].text in ("fox", "dog") and len(out.prompt_logprobs) == len(out.prompt_token_ids)


def test_one_token_has_nothing_before_it(llm):
    (out,) = llm.generate({"prompt_token_ids": [17]}, SCORED)
    assert out.prompt_logprobs == [None] and len(out.outputs[0].token_ids) == 8


def test_what_could_not_be_generated_is_not_scored(llm):
    num_steps = llm.stats.num_steps
    with pytest.raises(InvalidRequestError, match="a prompt of 256 tokens: must be at most 255 tokens"):
        llm.submit({"prompt_token_ids": [5] * 256}, SCORED)
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        llm.submit(PROMPT, SamplingParams(stop_token_ids=[9999], prompt_logprobs=0))
    assert llm.stats.num_steps == num_steps


def test_abort_and_deadline_while_the_prompt_is_scored(tiny_llama, wait_until_idle):
    with LLM(str(tiny_llama), **SHARED, max_num_batched_tokens=2, enable_prefix_caching=False) as llm:
        handle = llm.submit(PROMPT, SCORED)
        handle.abort()
        out = handle.result(10)
        assert (out.prompt_logprobs, out.outputs[0].finish_reason, out.outputs[0].token_ids) == (None, "abort", [])
        with pytest.raises(DeadlineExceeded):
            llm.submit(PROMPT, SCORED, deadline_s=1e-6).result(10)
        wait_until_idle(llm)
        assert llm.generate("the", SCORED)[0].outputs[0].finish_reason == "length"
