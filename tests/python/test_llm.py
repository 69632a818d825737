"""`LLM` through its public interface, on a tiny random llama."""

import asyncio
import io
import sys
import time

import pytest
import torch

from runtime import LLM, SamplingParams
from runtime.errors import ConfigError, InvalidRequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
ENDLESS = SamplingParams(max_tokens=200, ignore_eos=True)  # longer than any of these tests looks
PROMPTS = ["the quick", "brown fox jumps over the lazy dog " * 3, "é€😀", "x"]


def expected_tokens(reference, prompt_ids, max_new_tokens):
    ids = torch.tensor([prompt_ids])
    out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return out[0, len(prompt_ids) :].tolist()


def test_greedy_text_is_that_of_transformers(llm, reference):
    for prompt, out in zip(PROMPTS, llm.generate(PROMPTS, GREEDY)):
        expected = expected_tokens(reference, out.prompt_token_ids, 24)
        assert out.prompt == prompt and out.finished
        completion = out.outputs[0]
        assert completion.token_ids == expected
        stopped = expected[-1] == 1
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert completion.text == llm.tokenizer.decode(expected[:-1] if stopped else expected)


def test_every_shape_of_a_prompt_gives_the_same(llm):
    ids = llm.tokenizer.encode("the fox")
    shapes = ["the fox", ids, {"prompt": "the fox"}, {"prompt_token_ids": ids}]
    alone = [llm.generate(shape, GREEDY) for shape in shapes]
    together = llm.generate(shapes, GREEDY)
    assert all(len(outputs) == 1 for outputs in alone)
    tokens = [out.outputs[0].token_ids for out in [*(outputs[0] for outputs in alone), *together]]
    assert all(one == tokens[0] for one in tokens)
    assert llm.generate([], GREEDY) == []


def test_one_sampling_params_for_each_prompt(llm):
    several = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], several)
    assert [len(out.outputs[0].token_ids) for out in outputs] == [1, 5, 3]
    with pytest.raises(InvalidRequestError, match="2 sampling_params for 3 prompts"):
        llm.generate(["a", "b", "c"], several[:2])


def test_stream_adds_up_to_the_result(llm):
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=40, ignore_eos=True)
    (whole,) = llm.generate("the quick brown", params)
    chunks = list(llm.stream("the quick brown", params))
    assert "".join(chunk.delta for chunk in chunks) == whole.outputs[0].text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.outputs[0].token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert len(chunks) > 5
    assert chunks[-1].output.outputs == whole.outputs


def test_leaving_a_stream_early_aborts_the_request(llm, wait_until_idle):
    chunk = next(llm.stream("the", ENDLESS))
    wait_until_idle(llm)
    assert chunk.output.outputs[0].finish_reason == "abort"


def test_leaving_an_asynchronous_stream_early_aborts_the_request(llm, wait_until_idle):
    async def first():
        async for chunk in llm.agenerate("the", ENDLESS):
            return chunk

    chunk = asyncio.run(first())
    wait_until_idle(llm)
    assert chunk.output.outputs[0].finish_reason == "abort"


def test_agenerate_streams_in_asyncio(llm):
    async def collect(prompt):
        return [chunk async for chunk in llm.agenerate(prompt, GREEDY)]

    async def both():
        return await asyncio.gather(collect("the fox"), collect("lazy"))

    for prompt, chunks in zip(["the fox", "lazy"], asyncio.run(both())):
        assert "".join(chunk.delta for chunk in chunks) == llm.generate(prompt, GREEDY)[0].outputs[0].text


def test_chat_renders_the_template(llm):
    messages = [{"role": "user", "content": "the fox"}]
    (out,) = llm.chat(messages, GREEDY)
    assert out.prompt == "<|user|>the fox<|bot|>"
    assert out.outputs == llm.generate("<|user|>the fox<|bot|>", GREEDY)[0].outputs
    assert [out.prompt for out in llm.chat([messages, messages], GREEDY, add_generation_prompt=False)] == [
        "<|user|>the fox"
    ] * 2


def test_score_is_the_logprob_of_each_token(llm, reference):
    prompt, continuation = "the quick brown fox " * 8, "jumps over"
    prompt_ids, ids = llm.tokenizer.encode(prompt), llm.tokenizer.encode(continuation)
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt_ids + ids])).logits[0]
    logprobs = torch.log_softmax(logits, -1)[len(prompt_ids) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]
    for scored in (llm.score(prompt, continuation), llm.score(prompt_ids, ids), llm.score(prompt, continuation)):
        torch.testing.assert_close(torch.tensor(scored), logprobs, atol=2e-4, rtol=0)
    with pytest.raises(InvalidRequestError, match="continuation"):
        llm.score("the", "")


def test_score_beside_generating_requests(llm):
    alone = llm.score("the quick brown fox", "jumps over the dog")
    handles = [llm.submit(prompt, SamplingParams(max_tokens=60, ignore_eos=True, seed=1)) for prompt in PROMPTS]
    for _ in range(3):
        assert llm.score("the quick brown fox", "jumps over the dog") == pytest.approx(alone, abs=1e-4)
    for handle in handles:
        handle.result(10)


def test_logprobs_are_the_top_ones_and_the_sampled_one(llm, reference):
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=6, logprobs=3, ignore_eos=True)
    (out,) = llm.generate("the quick", params)
    completion = out.outputs[0]
    with torch.inference_mode():
        logits = reference(torch.tensor([out.prompt_token_ids + completion.token_ids])).logits[0]
    expected = torch.log_softmax(logits, -1)[len(out.prompt_token_ids) - 1 : -1]
    assert len(completion.logprobs) == 6
    for position, token, row in zip(completion.logprobs, completion.token_ids, expected):
        assert position[token].logprob == pytest.approx(float(row[token]), abs=2e-4)
        top = [t for t, one in position.items() if one.rank is not None]
        assert [position[t].rank for t in top] == [1, 2, 3]
        assert top == row.topk(3).indices.tolist()
        assert position[token].decoded_token == llm.tokenizer.decode([token])
    total = sum(position[token].logprob for position, token in zip(completion.logprobs, completion.token_ids))
    assert completion.cumulative_logprob == pytest.approx(total)


def test_requests_of_a_step_have_as_many_logprobs_as_each_asked_for(llm):
    numbers = [1, 0, None, 5, 2, 5]
    params = [SamplingParams(temperature=0.0, max_tokens=6, logprobs=number, ignore_eos=True) for number in numbers]
    for number, out in zip(numbers, llm.generate(["the quick"] * len(numbers), params)):
        positions = out.outputs[0].logprobs
        assert positions is None if number is None else [len(one) for one in positions] == [max(number, 1)] * 6


def test_n_completions_share_the_prompt(llm):
    llm.reset_prefix_cache()
    prompt = "the quick brown fox jumps over the lazy dog " * 3
    (out,) = llm.generate(prompt, SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=8, ignore_eos=True))
    assert [completion.index for completion in out.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in out.outputs}) == 3
    full_blocks = (len(out.prompt_token_ids) - 1) // 4 * 4
    assert out.num_cached_tokens == 0
    assert out.metrics.cached_tokens == 2 * full_blocks
    for index, completion in enumerate(out.outputs):  # completion i is the request with seed + i
        params = SamplingParams(temperature=1.0, seed=11 + index, max_tokens=8, ignore_eos=True)
        assert llm.generate(prompt, params)[0].outputs[0].token_ids == completion.token_ids


def test_a_seed_decides_the_output(llm):
    def run(seed):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True)
        return llm.generate("the", params)[0].outputs[0].token_ids

    assert run(5) == run(5) != run(6)
    assert run(None) != run(None)


def test_prefix_cache_counts_and_forgets(llm):
    prompt = list(range(2, 42))
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 36
    assert llm.submit(prompt, GREEDY, cache_salt="mine").result(10).num_cached_tokens == 0
    assert llm.submit(prompt, GREEDY, cache_salt="mine").result(10).num_cached_tokens == 36
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def stop_text(llm, **options):
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, **options)
    return llm.generate("the quick brown", params)[0].outputs[0]


def test_a_stop_string_ends_the_output(llm, wait_until_idle):
    whole = stop_text(llm)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]  # starts inside a token or not, as it happens
    cut = stop_text(llm, stop=stop)
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)] and len(cut.token_ids) < 40
    assert stop_text(llm, stop=["nowhere", stop], include_stop_str_in_output=True).text == cut.text + stop
    wait_until_idle(llm)


def test_a_streamed_stop_string_never_shows(llm):
    whole = stop_text(llm)
    stop = whole.text[10:14]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=[stop])
    *before, last = llm.stream("the quick brown", params)
    assert "".join(chunk.delta for chunk in (*before, last)) == whole.text[: whole.text.find(stop)]
    assert last.stop_reason == stop and {chunk.stop_reason for chunk in before} == {None}


def test_a_stop_token_ends_the_output(llm):
    whole = stop_text(llm)
    token = next(one for one in whole.token_ids[6:] if llm.tokenizer.decode([one]).strip())
    first = whole.token_ids.index(token)
    cut = stop_text(llm, stop_token_ids=[token])
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token)
    assert cut.text == llm.tokenizer.decode(cut.token_ids[:-1]) != llm.tokenizer.decode(cut.token_ids)
    shown = stop_text(llm, stop_token_ids=[token], include_stop_str_in_output=True)
    assert shown.text == llm.tokenizer.decode(cut.token_ids)
    assert len(stop_text(llm, stop_token_ids=[token], min_tokens=first + 2).token_ids) > first + 1


def test_eos_ends_the_output_unless_ignored(llm):
    force_eos = {"temperature": 0.0, "max_tokens": 9, "logit_bias": {1: 100.0}}
    out = llm.generate("the", SamplingParams(**force_eos))[0].outputs[0]
    assert (out.token_ids, out.text, out.finish_reason, out.stop_reason) == ([1], "", "stop", None)
    out = llm.generate("the", SamplingParams(**force_eos, ignore_eos=True))[0].outputs[0]
    assert (out.token_ids, out.finish_reason) == ([1] * 9, "length")
    shown = llm.generate("the", SamplingParams(**force_eos, ignore_eos=True, skip_special_tokens=False))[0].outputs[0]
    assert shown.text == "<eos>" * 9


def test_allowed_token_ids_and_detokenize(llm):
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=20, allowed_token_ids=[40, 50], detokenize=False)
    out = llm.generate("the", params)[0].outputs[0]
    assert set(out.token_ids) == {40, 50} and out.text == ""


def test_the_models_length_ends_an_output(llm):
    out = llm.generate([5] * 250, SamplingParams(max_tokens=None, ignore_eos=True))[0].outputs[0]
    assert (len(out.token_ids), out.finish_reason) == (6, "length")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_progress_bar_shows_on_a_terminal_with_more_than_one_prompt(llm, monkeypatch):
    def shown(stderr, prompts, **options):
        monkeypatch.setattr(sys, "stderr", stderr)
        llm.generate(prompts, SamplingParams(max_tokens=2), **options)
        return stderr.getvalue()

    assert "2/2" in shown(Terminal(), ["a", "b"])
    assert shown(Terminal(), ["a"]) == shown(io.StringIO(), ["a", "b"]) == ""
    assert shown(Terminal(), ["a", "b"], use_tqdm=False) == ""
    assert "2/2" in shown(io.StringIO(), ["a", "b"], use_tqdm=True)


def test_metrics(llm):
    before = time.time()
    (out,) = llm.generate("the quick brown fox", SamplingParams(max_tokens=5, ignore_eos=True))
    metrics = out.metrics
    assert before <= metrics.arrival <= time.time()
    assert 0 <= metrics.queue_s <= metrics.ttft_s <= metrics.e2e_s < 10
    assert (metrics.prompt_tokens, metrics.output_tokens, metrics.preemptions) == (len(out.prompt_token_ids), 5, 0)


def test_without_a_tokenizer(tiny_llama):
    with LLM(str(tiny_llama), skip_tokenizer_init=True) as llm:
        out = llm.generate([5, 6, 7], GREEDY)[0].outputs[0]
        assert out.text == "" and out.token_ids
        with pytest.raises(ConfigError, match="skip_tokenizer_init"):
            llm.generate("text")
        with pytest.raises(InvalidRequestError, match="stop.*skip_tokenizer_init"):
            llm.generate([5], SamplingParams(stop="x"))


def test_dummy_weights_need_config_json_alone(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    runs = []
    for seed in (0, 0, 1):
        with LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, seed=seed) as llm:
            runs.append(llm.generate([5, 6, 7], SamplingParams(temperature=0.0, logprobs=0))[0].outputs[0].logprobs)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("dtype, weight_bytes", [("bfloat16", 2), ("float32", 4)])
def test_dtypes(tiny_llama, reference, dtype, weight_bytes):
    with LLM(str(tiny_llama), dtype=dtype) as llm:
        assert llm.dtype == dtype and llm.memory.plan.weights == weight_bytes * reference.num_parameters()
        assert len(llm.generate("the", GREEDY)[0].outputs[0].token_ids) > 0
