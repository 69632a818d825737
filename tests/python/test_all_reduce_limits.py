"""Which way a sum goes by size: what measured times say, and what a device is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.bench.all_reduce import limits_of
from runtime.kernels import launch, tile_config
from runtime.kernels.tile_config import AllReduceLimits, all_reduce_limits

ROOT = Path(__file__).parents[2]
KIB = 1 << 10


def rows(*times):
    """Of 8, 16, 32... KiB, from (one-shot, two-shot, NCCL)."""
    names = ("one_shot_norm_us", "two_shot_norm_us", "nccl_norm_us")
    return [{"tp": 4, "bytes": 8 * KIB << i, **dict(zip(names, us))} for i, us in enumerate(times)]


@pytest.mark.parametrize(
    "times, one_shot, two_shot",
    [
        ([(3, 5, 8), (4, 5, 8), (7, 6, 8), (14, 9, 8)], 16 * KIB, 32 * KIB),
        ([(3, 5, 8), (4, 5, 8)], 16 * KIB, 16 * KIB),  # of what was measured
        ([(9, 5, 8), (4, 5, 8), (9, 9, 8)], 0, 16 * KIB),
        ([(9, 9, 8), (1, 1, 8)], 0, 0),  # never past a size at which NCCL is faster
        ([(3, 5, 8), (5.05, 5, 8), (6, 5, 8)], 16 * KIB, 32 * KIB),  # as good as equal
        ([(3, 5, 8), (9, 9, 8.95)], 16 * KIB, 16 * KIB),
    ],
)
def test_limits_follow_the_fastest_way(times, one_shot, two_shot):
    found = limits_of(reversed(rows(*times)))
    assert found == {"one_shot_bytes": one_shot, "two_shot_bytes": two_shot}


def test_without_peer_memory_nccl_makes_all_sums():
    assert limits_of([{"tp": 4, "bytes": 8192, "nccl_norm_us": 8.0}]) == {"one_shot_bytes": 0, "two_shot_bytes": 0}


@pytest.fixture
def device(tmp_path, monkeypatch):
    """device(name, tables) -> a CUDA device of that name and compute capability 9.0, beside tables by file name."""

    def make(name, tables):
        for file, table in tables.items():
            (tmp_path / f"{file}.json").write_text(json.dumps({"compute_capability": [9, 0], **table}))
        monkeypatch.setattr(tile_config, "device_name", lambda device: name)
        monkeypatch.setattr(launch, "capability", lambda device: (9, 0))
        return torch.device("cuda", 0)

    monkeypatch.setattr(tile_config, "_CONFIG_DIR", tmp_path)
    tile_config._tables.cache_clear()
    yield make
    tile_config._tables.cache_clear()


def test_measured_limits_come_before_the_defaults(device):
    table = {"all_reduce": {"4": {"one_shot_bytes": 1, "two_shot_bytes": 2}}}
    gpu = device("NVIDIA X", {"NVIDIA_X": table})
    assert all_reduce_limits(gpu, 4) == all_reduce_limits(gpu, 3) == AllReduceLimits(1, 2)
    assert all_reduce_limits(gpu, 2).one_shot_bytes > 2 and all_reduce_limits(gpu, 8).two_shot_bytes > 2
    assert all_reduce_limits(gpu, 9) == AllReduceLimits(0, 0)


def test_what_a_table_lacks_is_that_of_the_generation(device):
    others = {"linear": {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}}
    gpu = device("NVIDIA X", {"NVIDIA_X": {"linear": {"b": {"n": 4}, "c": None}}, "NVIDIA_Y": others})
    found = [tile_config.lookup(gpu, "linear", key) for key in "abcd"]
    assert found == [{"n": 1}, {"n": 4}, None, None]  # of c the library was measured to be best


def test_another_devices_narrower_class_does_not_come_before_the_devices_own(device):
    entries = [dict(key_tile=n, num_warps=4, num_stages=3, programs_per_sm=2, min_share=1) for n in (16, 32, 64)]
    own = {"256x2_many": entries[0], "256_many": entries[1]}
    others = {"256x1_many": entries[2], "256x1_few": entries[2]}
    gpu = device("NVIDIA X", {"NVIDIA_X": {"token_attention": own}, "NVIDIA_Y": {"token_attention": others}})

    def key_tile(group, batch):
        return tile_config.token_attention_config(gpu, 128, torch.bfloat16, group, batch, False).key_tile

    assert [key_tile(2, 64), key_tile(1, 64), key_tile(1, 8)] == [16, 32, 64]


def test_the_tool_makes_the_committed_limits_of_the_committed_rows(tmp_path):
    measured = ROOT / "docs" / "benchmarks" / "allreduce.jsonl"
    command = [sys.executable, ROOT / "tools" / "tune_all_reduce.py", "--out", tmp_path, "--rows", measured]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (made,) = tmp_path.glob("*.json")
    committed = json.loads((ROOT / "kernels" / "configs" / made.name).read_text())
    assert json.loads(made.read_text())["all_reduce"] == committed["all_reduce"]
