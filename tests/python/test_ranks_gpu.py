"""Two ranks with a CUDA device each: collectives in the graphs, and ranks that are lost."""

import os
import signal
import time

import pytest
import torch
from ranks import all_gone, rank_pids, wait_until

from runtime import LLM, SamplingParams
from runtime.engine import Knobs
from runtime.errors import DeviceNotFoundError, EngineDeadError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
PROMPTS = [f"{i * 37 % 90 + 10}+{i * 53 % 90 + 10}=" for i in range(40)] + ["reverse: abcdef", "sort: 9 4 7 1"]


def serve(size=2, knobs=None, **arguments):
    arguments = {"max_num_seqs": 32, "num_kv_blocks": 2048, "dtype": "float32", **arguments}
    return LLM._with_knobs(knobs or Knobs(), device="cuda", tensor_parallel_size=size, **arguments)


def tokens(llm, prompts=PROMPTS, params=GREEDY):
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


@pytest.fixture(scope="module")
def expected():
    with serve(1) as llm:
        return tokens(llm)


def test_two_ranks_give_the_tokens_of_one(expected):
    with serve() as llm:
        assert tokens(llm) == expected
        assert tokens(llm, PROMPTS[:3]) == expected[:3]
        sampled = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=24)
        assert tokens(llm, PROMPTS, sampled) == tokens(llm, PROMPTS, sampled)
    assert wait_until(lambda: not rank_pids())


def test_eager_steps_give_the_same_tokens(expected):
    with serve(enforce_eager=True) as llm:
        assert tokens(llm) == expected


@pytest.mark.parametrize("overlap", ["nccl", "copy"])
def test_steps_in_parts_give_the_same_tokens(overlap):
    """Prompts of 7000 tokens in all, most of them in steps of 4096."""
    prompts = [f"sort: {' '.join(str(i * j % 10) for j in range(1, 60))}" for i in range(1, 64)]
    options = {"max_num_seqs": 64, "max_num_batched_tokens": 4096}
    found = []
    for size, way in ((1, "none"), (2, overlap)):
        with serve(size, all_reduce_overlap=way, **options) as llm:
            outputs = llm.generate(prompts, GREEDY)
        assert sum(len(output.prompt_token_ids) for output in outputs) > 6000
        found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def test_preemption_through_the_cpu_tier_gives_the_same_tokens(expected):
    with serve(knobs=Knobs(preempt_every=7), cpu_kv_bytes=64 << 20, block_size=16) as llm:
        assert tokens(llm) == expected
        assert llm.stats.num_preemptions > 0


def test_deterministic_ranks_do_not_depend_on_the_batch():
    with serve(deterministic=True, dtype="auto") as llm:
        together = tokens(llm)
        assert [tokens(llm, prompt)[0] for prompt in PROMPTS[:8]] == together[:8]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.3])
def test_a_killed_rank_is_named_and_its_devices_are_free_again(delay_s, expected):
    with serve() as llm:
        (pid,) = rank_pids()
        handles = [llm.submit(prompt, LONG) for prompt in PROMPTS]
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2.0
        for handle in handles:
            with pytest.raises(EngineDeadError, match=rf"rank 1 \(process {pid}\) was killed by SIGKILL"):
                handle.result(max(deadline - time.monotonic(), 0.01))
        assert all_gone([pid])
    with serve() as llm:
        assert tokens(llm) == expected


def test_a_stopped_rank_is_named_within_the_step_timeout():
    with serve(step_timeout=2.0) as llm:
        (pid,) = rank_pids()
        handle = llm.submit(PROMPTS[0], LONG)
        next(iter(handle))
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineDeadError, match=rf"rank 1 \(process {pid}\) does not respond"):
            handle.result(4.0)
        assert all_gone([pid])


def test_a_device_too_few_is_refused():
    found = torch.cuda.device_count()
    with pytest.raises(DeviceNotFoundError, match=f"each rank needs a CUDA device, torch sees {found}"):
        LLM(device="cuda", tensor_parallel_size=64)
