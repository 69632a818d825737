"""The memory plan: equal to what the engine allocates, and for devices that are not here too."""

import dataclasses
import json
import logging
import subprocess
import sys

import pytest
import torch
from devices import CONFIGS, LLAMA_8B, h200, plan

from runtime import LLM
from runtime.cli.main import main
from runtime.config import EngineConfig
from runtime.engine import memory_use
from runtime.engine.device import GIB
from runtime.engine.device_bytes import CachingAllocator, DeviceBytes
from runtime.engine.memory_needs import meta_model
from runtime.errors import CapacityError, ConfigError

MIB = 1 << 20


def weight_bytes(model):
    """Of the tensors that the layers hold; a shared one counts once."""
    found = {}
    for layer in (model.pre_post_weight, *model.trans_layers_weight):
        for param in type(layer).params:
            for value in vars(getattr(layer, param.attribute)).values():
                if isinstance(value, torch.Tensor):
                    found[value.data_ptr()] = value.nbytes
    return sum(found.values())


# ---- the numbers ----------------------------------------------------------------------------


def test_a_plan_is_what_the_engine_allocates(tiny_llama):
    arguments = {"max_num_seqs": 5, "max_num_batched_tokens": 64, "block_size": 8, "num_kv_blocks": 70}
    planned = LLM.plan(str(tiny_llama), **arguments)
    with LLM(str(tiny_llama), **arguments) as llm:
        assert llm.memory.plan == planned and llm.memory.measured is None
        runner, model = llm._engine._runner, llm._engine._runner.model
        assert planned.kv_cache == model.mem_manager.kv_cache.nbytes
        assert planned.kv_blocks == llm.stats.num_blocks
        assert planned.max_model_len == llm.max_model_len
        plan_bytes = 4 * llm._engine._scheduler.plan_capacity
        outputs = runner._transfers.device_outputs(0).num_bytes
        masks = runner._masks._device_pairs.nbytes
        assert planned.parts["rows"] == runner.rows.num_bytes + runner.inputs.num_bytes + outputs + masks + plan_bytes
        tables = model.cos_cached.nbytes + model.sin_cached.nbytes
        assert tables <= planned.parts["tables"] < tables + 4096  # allocations are rounded up to 512 bytes
        assert planned.weights == weight_bytes(model)


def test_the_plan_of_the_8b_on_an_h200():
    found = plan(h200())
    assert found.weights == 16_060_522_496  # 8.03e9 parameters of two bytes
    assert found.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert found.total <= 0.9 * found.device_bytes < found.total + found.kv_bytes_per_token * found.block_size
    assert found.max_sequences == found.kv_blocks * found.block_size // 131072
    parts = found.parts
    assert parts["tables"] == 2 * 131072 * 64 * 4
    # the gate and up projections of all tokens, what is made of them, and the stream
    assert 8192 * (28672 + 14336 + 3 * 4096) * 2 < parts["activations"] < 1.3 * GIB
    assert parts["sampler"] > 257 * 128256 * 8
    assert found.workspace == sum(parts.values())


def test_what_changes_the_plan():
    usual = plan(h200())
    assert plan(h200(), max_num_batched_tokens=2048).parts["activations"] < usual.parts["activations"] / 3
    assert plan(h200(), deterministic=True).parts["attention"] > 2 * GIB  # a partial for each 256 tokens of context
    assert usual.parts["attention"] < 4 * MIB  # of the programs that the device has at most at a time
    assert plan(h200(), enforce_eager=True).graphs == 0 < usual.graphs
    assert plan(h200(used_bytes=20 * GIB)).kv_cache < usual.kv_cache - 19 * GIB
    assert plan(h200(), dtype="float32").weights == 2 * usual.weights
    assert plan(h200(), kv_cache_memory_bytes=2 * GIB).kv_cache == 2 * GIB


def test_the_ranks_of_a_host_share_its_memory():
    arguments = {**LLAMA_8B, "device": "cpu", "device_memory_bytes": 24 * GIB}
    alone, shared = (LLM.plan(**arguments, tensor_parallel_size=size) for size in (1, 2))
    assert alone.kv_cache == pytest.approx(4 * GIB, rel=0.01) and shared.kv_cache == pytest.approx(2 * GIB, rel=0.01)


def test_no_kv_cache_is_small_enough_for_weights_that_do_not_fit():
    with pytest.raises(CapacityError, match=r"\(with the smallest KV cache a device of 15\.\d GiB would hold it\)"):
        LLM.plan(**LLAMA_8B, device="cpu", device_memory_bytes=8 * GIB)
    with pytest.raises(CapacityError, match="has 16.00 GiB .*num_kv_blocks and kv_cache_memory_bytes change it"):
        LLM.plan(**LLAMA_8B, device="cpu", device_memory_bytes=16 * GIB)


@pytest.mark.parametrize("max_model_len, expected", [(1024, 7), (1025, 6), (1088, 6), (1089, 6), (1153, 5)])
def test_sequences_take_whole_blocks(max_model_len, expected):
    found = dataclasses.replace(plan(h200()), kv_blocks=112, block_size=64, max_model_len=max_model_len)
    assert found.max_sequences == expected


def test_a_context_that_does_not_fit_is_shortened():
    found = plan(h200(memory_bytes=24 * GIB))
    assert found.max_model_len < found.model_len == 131072
    assert found.max_sequences == 1 and found.kv_blocks >= found.max_model_len // found.block_size


def test_plans_need_neither_triton_nor_the_compiler():
    code = (
        "import sys; from runtime import LLM;"
        f"LLM.plan({LLAMA_8B['model']!r}, load_format='dummy', device_name='NVIDIA H200');"
        "print([name for name in ('triton', 'torch._dynamo') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# ---- counting -------------------------------------------------------------------------------


def test_the_allocator_reuses_splits_and_joins():
    allocator = CachingAllocator()
    large = allocator.allocate(64 * MIB)
    allocator.free(large)
    halves = [allocator.allocate(32 * MIB) for _ in range(2)]  # of the same segment
    assert allocator.reserved == 64 * MIB and allocator.allocated == 64 * MIB
    for half in halves:
        allocator.free(half)
    allocator.free(allocator.allocate(64 * MIB))  # joined again
    assert (allocator.reserved, allocator.allocated, allocator.peak) == (64 * MIB, 0, 64 * MIB)
    allocator.allocate(1)  # small ones have segments of their own
    assert (allocator.reserved, allocator.allocated) == (66 * MIB, 512)
    allocator.allocate(65 * MIB)  # rounded to 2 MiB
    assert allocator.reserved == 132 * MIB


def test_tensors_count_while_they_live():
    with DeviceBytes() as counted:
        kept = torch.empty(1 << 20, device="meta")
        view = kept[:10]
        torch.empty(1 << 20, device="meta")
        torch.empty(1 << 20, device="cpu")
    assert counted.allocator.allocated == 4 * MIB and counted.allocator.peak == 8 * MIB
    del kept
    assert counted.allocator.allocated == 4 * MIB  # the view holds the memory
    del view
    assert counted.allocator.allocated == 0


@pytest.mark.parametrize("name, size", [("llama-3.1-8b", 1), ("llama-3.1-8b", 4), ("llama-3.1-70b", 4)])
def test_loading_leaves_little_that_cannot_be_given_back(name, size):
    config = EngineConfig(
        model=str(CONFIGS / name), load_format="dummy", tensor_parallel_size=size, device="cuda", block_size=64
    )
    with DeviceBytes() as counted:
        model = meta_model(config, h200())
    allocator = counted.allocator
    assert allocator.allocated >= model.memory.weight_bytes and allocator.stuck < 300 * MIB


def test_a_segment_in_use_in_part_is_stuck():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(64 * MIB))
    assert allocator.stuck == 0
    allocator.allocate(24 * MIB)
    assert allocator.stuck == 40 * MIB


# ---- planned and measured -------------------------------------------------------------------


@pytest.mark.parametrize("extra, level", [(0, logging.INFO), (20 * GIB, logging.WARNING)])
def test_start_compares_the_plan_with_what_it_measures(monkeypatch, extra, level):
    planned = plan(h200())
    probe = {"in_use": planned.context, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (140 * GIB - probe["in_use"], 140 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *args: probe["allocated"])
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    meter = memory_use.MemoryMeter(h200())
    stages = (
        ("loaded", planned.weights + planned.kv_cache + planned.parts["tables"]),
        ("warm", planned.workspace - planned.parts["tables"] + extra),
        ("ready", planned.graphs),
    )
    for stage, num_bytes in stages:
        probe["in_use"] += num_bytes
        probe["allocated"] += num_bytes
        meter.mark(stage)
    lines = []
    for name in ("info", "warning"):
        number = getattr(logging, name.upper())
        monkeypatch.setattr(
            memory_use.logger, name, lambda *args, number=number: lines.append((number, args[0] % args[1:]))
        )
    measured = meter.compare(planned, planned.kv_cache).measured
    for name in ("weights", "kv_cache", "graphs"):
        assert getattr(measured, name) == getattr(planned, name)
    assert measured.workspace == planned.workspace + extra and measured.total == planned.total + extra
    assert [number for number, _ in lines] == [level] and "weights 14.96/14.96" in lines[0][1]


# ---- the two doors --------------------------------------------------------------------------


def test_known_devices_and_described_ones():
    named = LLM.plan(**LLAMA_8B, device_name="NVIDIA H200")
    assert named.device_bytes == int(139.8 * GIB) and named.device == "NVIDIA H200"
    assert LLM.plan(**LLAMA_8B, device_memory_bytes=80 * GIB).device_bytes == 80 * GIB
    cpu = LLM.plan(**LLAMA_8B, device_memory_bytes=64 * GIB, device="cpu")
    assert (cpu.graphs, cpu.context, cpu.kv_cache) == (0, 0, 4 * GIB)
    with pytest.raises(ConfigError, match="'NVIDIA H20' is not a known device; did you mean 'NVIDIA H200'"):
        LLM.plan(**LLAMA_8B, device_name="NVIDIA H20")
    with pytest.raises(ConfigError, match="device_memory_bytes=0: must be at least 1"):
        LLM.plan(**LLAMA_8B, device_memory_bytes=0)
    with pytest.raises(ConfigError, match="unknown argument 'block_sizes'"):
        LLM.plan(**LLAMA_8B, block_sizes=16)


def test_inspect_plan(capsys):
    arguments = ["inspect", LLAMA_8B["model"], "--load-format", "dummy", "--plan"]
    assert main([*arguments, "--device-name", "NVIDIA H200"]) == 0
    out = capsys.readouterr().out
    assert "memory on NVIDIA H200:\nweights                    15,316.5 MiB" in out and "kv_blocks  " in out
    assert main([*arguments, "--device-memory", "80GiB", "--json", "--max-num-seqs", "8"]) == 0
    found = json.loads(capsys.readouterr().out)["plan"]
    assert found["device_bytes"] == 80 * GIB and found["total"] <= 72 * GIB
    assert main([*arguments, "--device-memory", "12 GiB"]) == 69
    with pytest.raises(SystemExit):
        main([*arguments, "--device-memory", "12x"])
