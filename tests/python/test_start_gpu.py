"""Starting on a CUDA device: after the warm-up nothing compiles and nothing is allocated, and memory is as planned."""

import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from runtime import LLM, SamplingParams
from runtime.engine import loading
from runtime.engine.device_bytes import CachingAllocator
from runtime.errors import CapacityError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

alone = pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs the device for itself: run without -n")

CONFIGS = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs"
MIB, GIB = 1 << 20, 1 << 30
DUMMY = {"load_format": "dummy", "skip_tokenizer_init": True, "device": "cuda"}
QWEN = {"model": str(CONFIGS / "qwen3-0.6b"), **DUMMY}
LLAMA = {"model": str(CONFIGS / "llama-3.1-8b"), **DUMMY}
SAMPLERS = [
    SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=1, max_tokens=33, ignore_eos=True),
    SamplingParams(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, max_tokens=21, ignore_eos=True),
    SamplingParams(temperature=0.5, presence_penalty=0.4, frequency_penalty=0.1, repetition_penalty=1.2, max_tokens=17),
    SamplingParams(temperature=0.0, logit_bias={5: 3.0}, min_tokens=4, logprobs=5, max_tokens=25),
    SamplingParams(temperature=1.0, allowed_token_ids=[3, 4, 5, 6, 7, 8], max_tokens=9),
]


@contextmanager
def compiling_is_an_error():
    """A kernel that Triton has not compiled in this process yet, or not for such arguments, fails its launch."""
    from triton import knobs

    def refuse(*, repr, **_):
        raise AssertionError(f"compiled after the warm-up: {repr}")

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, refuse
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


def driver_allocations():
    """Calls of cudaMalloc by torch so far."""
    stats = torch.cuda.memory_stats()
    return stats["segment.all.allocated"], stats["num_alloc_retries"]


def serve(llm, num_requests, longest):
    """Requests of every sampler and many lengths, some of which arrive while others decode."""
    rng = random.Random(0)
    handles = []
    for i in range(num_requests):
        prompt = [rng.randrange(9, 400) for _ in range(rng.choice([1, 2, 15, 16, 17, rng.randint(1, longest)]))]
        handles.append(llm.submit(prompt, SAMPLERS[i % len(SAMPLERS)]))
        if i % 7 == 6:
            handles[-6].result(60)
    for handle in handles:
        assert handle.result(60).finished


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"deterministic": True}], ids=str)
def test_serving_neither_compiles_nor_allocates(options):
    with LLM(device="cuda", max_num_seqs=40, num_kv_blocks=4096, max_num_batched_tokens=512, **options) as llm:
        before = driver_allocations()
        with compiling_is_an_error():
            serve(llm, 120, 300)
        assert driver_allocations() == before


def test_serving_a_larger_model_neither_compiles_nor_allocates():
    with LLM(**QWEN, max_num_seqs=128, num_kv_blocks=4096, max_model_len=4096) as llm:
        before = driver_allocations()
        with compiling_is_an_error():
            serve(llm, 200, 3000)
        assert driver_allocations() == before


def test_serving_an_8b_never_waits_for_the_device():
    with LLM(**LLAMA, max_num_seqs=64, num_kv_blocks=1024, max_model_len=4096) as llm:
        before = driver_allocations()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with compiling_is_an_error():
                serve(llm, 100, 2000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert driver_allocations() == before


def test_the_hook_sees_a_compilation():
    from runtime.kernels.silu_and_mul import silu_and_mul

    x = torch.randn(4, 62, device="cuda", dtype=torch.float64)  # no model has it
    with compiling_is_an_error(), pytest.raises(AssertionError, match="compiled after the warm-up: _silu_and_mul"):
        silu_and_mul(x)


@alone
@pytest.mark.parametrize("options", [{}, {"deterministic": True, "max_num_seqs": 64}, {"enforce_eager": True}], ids=str)
def test_memory_is_as_planned(options):
    with LLM(**{**QWEN, "kv_cache_memory_bytes": 4 * GIB, "max_model_len": 8192, **options}) as llm:
        plan, measured = llm.memory.plan, llm.memory.measured
    print({name: (getattr(plan, name), getattr(measured, name)) for name in vars(measured)})
    assert measured.weights == pytest.approx(plan.weights, rel=0.02)
    assert measured.kv_cache == plan.kv_cache
    assert abs(measured.workspace + measured.graphs - plan.workspace - plan.graphs) < 300 * MIB


def test_the_allocator_model_is_torchs():
    rng, model, pool = random.Random(1), CachingAllocator(), torch.cuda.MemPool()
    before, held = torch.cuda.memory_reserved(), []
    with torch.cuda.use_mem_pool(pool):
        for _ in range(400):
            if held and rng.random() < 0.5:
                tensor, block = held.pop(rng.randrange(len(held)))
                del tensor
                model.free(block)
            else:
                size = rng.choice([rng.randint(1, 4096), rng.randint(1, 12 * MIB), rng.randint(1, 100 * MIB)])
                held.append((torch.empty(size, dtype=torch.uint8, device="cuda"), model.allocate(size)))
        assert torch.cuda.memory_reserved() - before == model.reserved


@alone
def test_memory_that_another_process_takes_meanwhile(monkeypatch):
    plan_memory, others = loading.plan_memory, []
    hog = (
        "import sys, torch; taken = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device='cuda');"
        "print('taken', flush=True); input()"
    )

    def plan_then_lose(config, device):
        plan = plan_memory(config, device)
        command = [sys.executable, "-c", hog, str(int(0.6 * device.memory_bytes))]
        others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        others[0].stdout.readline()
        return plan

    monkeypatch.setattr(loading, "plan_memory", plan_then_lose)
    try:
        with pytest.raises(CapacityError, match="the device ran out of memory: .* GiB are free"):
            LLM(**QWEN)
    finally:
        for other in others:
            other.kill()
            other.wait()
