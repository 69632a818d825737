"""The CPU tier of the KV cache, end to end and piece by piece."""

import time

import numpy as np
import pytest
import torch

from runtime import LLM, SamplingParams, _core
from runtime.engine import Knobs, loading
from runtime.engine.kv_tier import CudaTier, MemcpyTier
from runtime.engine.model_runner import ModelRunner
from runtime.errors import CapacityError, ConfigError
from runtime.kernels import step_plan as sp

TO_HOST, FROM_HOST = sp.COPY_TO_HOST, sp.COPY_FROM_HOST
# what fits now starts, so that requests preempt each other
SMALL = {"block_size": 4, "num_kv_blocks": 36, "max_model_len": 128, "deterministic": True, "admission": "none"}
PROMPTS = [[2 + (7 * i + j) % 380 for j in range(20 + i)] for i in range(8)]
PARAMS = [
    SamplingParams(temperature=(0.0, 0.8)[i % 2], seed=i, max_tokens=24, ignore_eos=True) for i in range(len(PROMPTS))
]


def tokens_of(llm):
    return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, PARAMS)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama):
    with LLM(str(tiny_llama), **{**SMALL, "num_kv_blocks": 400}, enable_prefix_caching=False) as llm:
        return tokens_of(llm)


class WitnessedRunner(ModelRunner):
    """Remembers what was stored, and holds what is loaded against it."""

    witnessed = 0

    def _start_copies(self, words, header):
        super()._start_copies(words, header)
        kv, saved = self.model.mem_manager.kv_cache, self.__dict__.setdefault("saved", {})
        at, count = header[sp.COPIES], header[sp.COPIES + 1]
        for kind, source, target in words[at : at + 3 * count].reshape(count, 3).tolist():
            if kind == TO_HOST:
                saved[target] = kv[:, :, source].clone()
            else:
                assert torch.equal(kv[:, :, target], saved[source])
                type(self).witnessed += 1


@pytest.mark.parametrize(
    "arguments, knobs",
    [
        ({}, Knobs()),  # so few blocks that requests preempt each other
        ({}, Knobs(num_steps_in_flight=2)),
        ({"eviction": "cost"}, Knobs(preempt_every=3)),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 3}, Knobs(preempt_every=2, num_steps_in_flight=2)),
    ],
    ids=["few-blocks", "few-blocks-async", "preempt-cost", "preempt-chunks-async"],
)
def test_swapped_requests_give_the_tokens_of_uninterrupted_ones(tiny_llama, uninterrupted, arguments, knobs):
    with LLM._with_knobs(knobs, str(tiny_llama), **SMALL, cpu_kv_bytes=1 << 20, **arguments) as llm:
        assert tokens_of(llm) == uninterrupted
        assert tokens_of(llm) == uninterrupted  # now with what both tiers hold
        stats = llm.stats
        assert stats.num_swaps > 0 and stats.num_loaded_blocks > 0
        assert stats.num_free_blocks == stats.num_blocks


def test_what_is_loaded_is_byte_for_byte_what_was_stored(tiny_llama, uninterrupted):
    runner = type("Runner", (WitnessedRunner,), {})
    knobs = Knobs(preempt_every=4, runner_class=runner)
    with LLM._with_knobs(knobs, str(tiny_llama), **SMALL, cpu_kv_bytes=1 << 20) as llm:
        assert tokens_of(llm) == uninterrupted
        assert llm.stats.num_loaded_blocks == runner.witnessed > 0


def test_a_prefix_that_left_the_device_is_cached_on_the_host(tiny_llama):
    params = SamplingParams(temperature=0.0, max_tokens=1)
    prompt, other = list(range(2, 66)), list(range(100, 200))
    with LLM(str(tiny_llama), **SMALL, cpu_kv_bytes=1 << 20) as llm:
        first = llm.generate(prompt, params)[0]
        llm.generate(other, params)
        assert llm.stats.num_evictions > 0
        again = llm.generate(prompt, params)[0]
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 60)
        assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_sizes_that_cannot_be(tiny_llama):
    with pytest.raises(CapacityError, match="cpu_kv_bytes=100: a block of 4 tokens needs"):
        LLM(str(tiny_llama), **SMALL, cpu_kv_bytes=100)
    with pytest.raises(ConfigError, match="cpu_kv_bytes=1000: must be 0 without a prefix cache"):
        LLM(str(tiny_llama), **SMALL, cpu_kv_bytes=1000, enable_prefix_caching=False)
    with pytest.raises(ConfigError, match="eviction='lfu': must be one of lru, cost"):
        LLM(str(tiny_llama), **SMALL, eviction="lfu")


def copies(*entries):
    return np.array(entries, np.int32).reshape(-1, sp.COPY_WORDS)


def tier_and_cache(device, num_host_blocks=3):
    kv_cache = torch.randn(2, 2, 6, 2, 4, 8).to(device)
    make = CudaTier if device == "cuda" else MemcpyTier
    return make(kv_cache, num_host_blocks), kv_cache


def copy_of(tensor):
    copied = tensor.clone()
    if tensor.is_cuda:
        torch.cuda.synchronize()  # the tier's stream does not wait for this one
    return copied


def take_all(tier):
    deadline, done = time.monotonic() + 30, []
    while tier.is_busy and time.monotonic() < deadline:
        done += tier.take_done()
    return done


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_blocks_move_in_every_layer_and_nothing_else_does(device):
    tier, kv_cache = tier_and_cache(device)
    before = copy_of(kv_cache)
    tier.start(5, copies((TO_HOST, 4, 1), (TO_HOST, 2, 3)))
    assert take_all(tier) == [5] and not tier.is_busy
    assert torch.equal(tier.host[:, :, [0, 2]], before[:, :, [4, 2]].cpu())
    assert torch.equal(kv_cache, before)
    tier.start(6, copies((FROM_HOST, 3, 5), (TO_HOST, 1, 2)))
    assert take_all(tier) == [6]
    assert torch.equal(kv_cache[:, :, 5], before[:, :, 2])
    assert torch.equal(kv_cache[:, :, :5], before[:, :, :5])
    assert torch.equal(tier.host, before[:, :, [4, 1, 2]].cpu())


@pytest.mark.gpu
def test_starting_copies_waits_for_nothing():
    tier, _ = tier_and_cache("cuda")
    tier.start(1, copies((TO_HOST, 1, 1), (FROM_HOST, 2, 4)))  # takes what memory it needs
    take_all(tier)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # the engine's stream has long work
        torch.cuda._sleep(2_000_000_000)
        allocated = torch.cuda.memory_allocated()
        tier.start(2, copies((TO_HOST, 2, 2), (FROM_HOST, 1, 5)))
        assert torch.cuda.memory_allocated() == allocated
        assert take_all(tier) == [2], "copies do not wait for the engine's stream"
        assert not torch.cuda.current_stream().query(), "the engine's stream was still at work"


@pytest.mark.gpu
def test_swapped_requests_give_the_same_tokens_on_a_gpu(tiny_llama, monkeypatch):
    monkeypatch.setattr(loading, "_LINK_BYTES_PER_S", 1e18)  # a tiny model is sooner computed than copied
    arguments = {**SMALL, "device": "cuda"}
    with LLM(str(tiny_llama), **{**arguments, "num_kv_blocks": 400}) as llm:
        expected = tokens_of(llm)
    with LLM._with_knobs(Knobs(preempt_every=3), str(tiny_llama), **arguments, cpu_kv_bytes=1 << 20) as llm:
        assert tokens_of(llm) == expected
        assert llm.stats.num_swaps > 0 and llm.stats.num_loaded_blocks > 0


def test_a_pinned_prefix_stays_while_others_come_and_go(tiny_llama):
    params = SamplingParams(temperature=0.0, max_tokens=1)
    prompt = list(range(2, 40))
    with LLM(str(tiny_llama), **SMALL) as llm:
        with llm.pin_prefix(prompt, cache_salt="a") as pin:
            assert pin.num_tokens == 36
            assert llm.stats.num_pinned_blocks == 9
            for first in range(50, 250, 50):
                llm.generate(list(range(first, first + 100)), params)
            assert llm.submit(prompt, params, cache_salt="a").result().num_cached_tokens == 36
        assert not pin.unpin()
        for first in range(50, 250, 50):
            llm.generate(list(range(first, first + 100)), params)
        assert llm.submit(prompt, params, cache_salt="a").result().num_cached_tokens == 0


def test_pins_that_cannot_be(tiny_llama):
    with LLM(str(tiny_llama), **SMALL) as llm:
        with pytest.raises(CapacityError, match="room for 18 more"):
            llm.pin_prefix(list(range(2, 100)))
        assert llm.pin_prefix([5, 6]).num_tokens == 0, "no full block"
        assert not llm.pin_prefix([5, 6]).unpin()
    with LLM(str(tiny_llama), **SMALL, enable_prefix_caching=False) as llm:
        with pytest.raises(ConfigError, match="pin_prefix needs a prefix cache"):
            llm.pin_prefix([5, 6])


def test_the_scheduler_refuses_costs_out_of_range():
    with pytest.raises(ConfigError, match="transfer_block_s=11: must be between 0 and 10; nearest: 10"):
        _core.SchedulerConfig(1, 1, 1, 2, 2, transfer_block_s=11)
