"""Two ranks on the CPU answer as one does, cost nothing while idle and open no port."""

import os
import time

import pytest
from ranks import all_gone, cpu_ticks, listening_sockets, rank_pids

from runtime import LLM, SamplingParams
from runtime.engine import Knobs
from runtime.engine.peers import Peers
from runtime.errors import ConfigError

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, logprobs=2)
QUESTIONS = ["12+35=", "reverse: abcdef", "sort: 9 4 7 1", "99-98=", "7+8="]


def answers(llm, prompts, params):
    return [(out.outputs[0].text, out.outputs[0].token_ids) for out in llm.generate(prompts, params)]


@pytest.fixture(scope="module")
def pair():
    with LLM(device="cpu", tensor_parallel_size=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def single():
    with LLM(device="cpu") as llm:
        yield llm


def test_two_ranks_give_the_text_of_one(single, pair):
    assert answers(pair, QUESTIONS, GREEDY) == answers(single, QUESTIONS, GREEDY)


def test_logprobs_and_scores_are_those_of_one_rank(single, pair):
    for name in ("12+35=", "reverse: abc"):
        one, two = (llm.generate(name, GREEDY)[0].outputs[0] for llm in (single, pair))
        assert two.cumulative_logprob == pytest.approx(one.cumulative_logprob, abs=1e-4)
        assert pair.score(name, "47") == pytest.approx(single.score(name, "47"), abs=1e-4)


def test_sampled_tokens_are_the_rows_of_all_ranks(single, pair):
    params = [SamplingParams(temperature=0.9, top_p=0.9, seed=i, max_tokens=20, n=2) for i in range(6)]
    prompts = [f"{i}{i}+{i}=" for i in range(6)]

    def texts(llm):
        return [[c.token_ids for c in out.outputs] for out in llm.generate(prompts, params)]

    assert texts(pair) == texts(single)


def test_large_steps_in_parts_give_the_same_text(tiny_llama):
    """Prompts of more than 2048 tokens in one step, cut at a chunk: the second step has the rest."""
    prompts = [[3 + (i * j) % 300 for j in range(60 + i)] for i in range(40)]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    options = {"device": "cpu", "max_num_batched_tokens": 2304, "num_kv_blocks": 512}
    found = []
    for arguments in ({}, {"tensor_parallel_size": 2, "all_reduce_overlap": "copy"}):
        with LLM(str(tiny_llama), **options, **arguments) as llm:
            found.append(answers(llm, prompts, params))
    assert found[0] == found[1]


def test_an_idle_rank_uses_no_cpu(pair):
    (pid,) = rank_pids()
    pair.generate(QUESTIONS, GREEDY)
    before = cpu_ticks(pid)
    time.sleep(2.0)
    assert cpu_ticks(pid) - before <= 0.01 * 2.0 * os.sysconf("SC_CLK_TCK")


def test_nobody_listens(pair):
    assert not [pid for pid in (os.getpid(), *rank_pids()) if listening_sockets(pid)]


def test_four_ranks_share_two_kv_heads_and_survive_preemption(tiny_llama):
    prompts = [list(range(3, 3 + 7 * i)) for i in range(1, 9)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    options = {"device": "cpu", "num_kv_blocks": 40, "block_size": 4, "max_num_batched_tokens": 32, "max_model_len": 96}
    found, others = [], set(rank_pids())
    for size in (1, 4):
        with LLM._with_knobs(
            Knobs(preempt_every=5), str(tiny_llama), tensor_parallel_size=size, cpu_kv_bytes=1 << 20, **options
        ) as llm:
            found.append(answers(llm, prompts, params))
            assert llm.stats.num_preemptions > 0
            pids = set(rank_pids()) - others
            assert len(pids) == size - 1
        assert all_gone(pids)
    assert found[0] == found[1]


def test_a_number_of_ranks_that_does_not_divide_is_refused(tiny_llama):
    others = rank_pids()
    with pytest.raises(ConfigError, match="num_attention_heads=4 does not divide by world_size=3; nearest: 2"):
        LLM(str(tiny_llama), device="cpu", tensor_parallel_size=3)
    assert rank_pids() == others


def test_the_plan_is_that_of_one_rank(tiny_llama):
    one, two = (LLM.plan(str(tiny_llama), device="cpu", tensor_parallel_size=size) for size in (1, 2))
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token
    assert two.weights < 0.6 * one.weights


def test_ranks_agree_on_what_fits_on_all_of_them():
    class Channel:
        def exchange(self, own):
            return [own, b'{"kv_blocks": 7, "max_model_len": 900}']

    assert Peers(channel=Channel()).smallest(kv_blocks=9, max_model_len=300) == {"kv_blocks": 7, "max_model_len": 300}
