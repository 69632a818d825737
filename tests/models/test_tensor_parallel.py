"""Ranks hold their own part of every tensor, and together compute what one rank computes."""

import functools
import importlib.util
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runtime.basemodel import BaseLayerWeight, Placement, Replicated, RowParallel, load_model, token_parts, tp_sizes
from runtime.basemodel.weights import dummy_tensors
from runtime.errors import ConfigError
from runtime.loader import Checkpoint, DummyCheckpoint, read_config
from runtime.models.bloom import BloomTransformerLayerWeight
from runtime.models.llama import LlamaPreAndPostLayerWeight, LlamaTransformerLayerWeight
from runtime.parallel import PendingSum, TpGroup, make_unique_id

PROGRAM = Path(__file__).with_name("tp_rank.py")
# each with two KV heads but BLOOM, which has as many as heads; the vocabulary of 67 does not divide
FAMILIES = ("llama-default", "qwen2", "qwen3", "bloom-8")


class ThreadGroup(TpGroup):
    """Ranks as threads of this process; with `overlaps` a sum that is started is made when it is taken."""

    def __init__(self, rank, size, shared, overlaps=False):
        self.rank, self.size, self.overlaps = rank, size, overlaps
        self._barrier, self._slots = shared
        self.num_started = 0

    @classmethod
    def of_size(cls, size, overlaps=False):
        shared = threading.Barrier(size, timeout=20), [None] * size
        return [cls(rank, size, shared, overlaps) for rank in range(size)]

    def start_sum(self, x):
        self.num_started += 1
        return LateSum(self, x)

    def _exchange(self, x):
        self._slots[self.rank] = x
        self._barrier.wait()
        parts = [part.clone() for part in self._slots]
        self._barrier.wait()
        return parts

    def all_reduce(self, x):
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x):
        return torch.cat(self._exchange(x), dim=-1)


class LateSum(PendingSum):
    def __init__(self, group, x):
        super().__init__(x)
        self._group = group

    def _wait(self):
        return self._group.all_reduce(self._total)


def run_ranks(size, work, overlaps=False):
    """work(group) of every rank at once; results in rank order."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, ThreadGroup.of_size(size, overlaps)))


@pytest.mark.parametrize(
    "name, size",
    [("llama-default", 8), ("llama-bias", 2), ("llama-tied", 4), ("qwen2", 8), ("qwen3", 4), ("bloom-8", 8)],
)
def test_ranks_agree_with_one(tiny, rows, sequences, name, size):
    folder = tiny(name).folder

    def work(group):
        model = load_model(
            folder, max_total_token_num=256, tp_rank=group.rank, world_size=group.size, tp_group=group, max_num_seqs=8
        )
        driver = rows(model)
        logits = driver.step(dict(enumerate(sequences)))
        decoded = driver.step({i: [7] for i in range(len(sequences))}, decode=True)
        return torch.stack([*logits.values(), *decoded.values()])

    results = run_ranks(size, work)
    one = work(TpGroup())
    for logits in results:
        torch.testing.assert_close(logits, one, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def one_rank(tiny):
    """one_rank(device) -> logits and tokens of the program's prompts, by family, from models that are not split."""
    spec = importlib.util.spec_from_file_location("tp_rank", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return functools.cache(
        lambda device: {name: program.run(tiny(name).folder, TpGroup(), device) for name in FAMILIES}
    )


def run_processes(size, device, folders, out):
    """What each rank's program wrote, in rank order."""
    unique_id = make_unique_id(device)
    files = [out / f"rank{rank}.safetensors" for rank in range(size)]
    commands = [
        [sys.executable, PROGRAM, str(rank), str(size), device, file, *folders] for rank, file in enumerate(files)
    ]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    ranks = [subprocess.Popen(command, text=True, bufsize=1, **pipes) for command in commands]
    try:
        for rank in ranks:
            rank.stdin.write(f"{unique_id.hex()}\n")
        errors = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(errors)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [load_file(file) for file in files]


@pytest.mark.parametrize(
    "device, atol", [("cpu", 1e-5), pytest.param("cuda", 1e-3, marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
@pytest.mark.parametrize("size", [2, 4])
def test_processes_agree_with_one(tiny, one_rank, tmp_path, size, device, atol):
    if device == "cuda" and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    results = run_processes(size, device, [tiny(name).folder for name in FAMILIES], tmp_path)
    for name, expected in one_rank(device).items():
        for result in results:
            found = result[f"{name}.logits"], result[f"{name}.tokens"]
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def layer_of_rank(layer_class, folder, rank, size, *layer_num):
    placement = Placement(ThreadGroup(rank, size, (None, None)), torch.float32, torch.device("cpu"))
    layer = layer_class(placement, read_config(folder, {"norm_eps": 1e-5, "intermediate_size": 256}), *layer_num)
    checkpoint = Checkpoint(folder)
    layer.load(checkpoint)
    assert layer.num_bytes == checkpoint.bytes_read or size > 1 and not layer_num
    return layer, checkpoint


def test_shards_are_the_bytes_of_the_checkpoint(tiny):
    family = tiny("llama-default")
    attention, mlp = family.hf.model.layers[1].self_attn, family.hf.model.layers[1].mlp
    q, k, v = (getattr(attention, f"{name}_proj").weight for name in "qkv")
    for rank in range(4):
        layer, checkpoint = layer_of_rank(LlamaTransformerLayerWeight, family.folder, rank, 4, 1)
        kv_head = rank // 2  # two KV heads, each on two ranks
        own = [q[16 * rank :][:16], k[8 * kv_head :][:8], v[8 * kv_head :][:8]]
        assert torch.equal(layer.qkv_proj.weight, torch.cat(own))
        assert torch.equal(layer.o_proj.weight, attention.o_proj.weight[:, 16 * rank :][:, :16])
        gate_up = torch.cat([mlp.gate_proj.weight[24 * rank :][:24], mlp.up_proj.weight[24 * rank :][:24]])
        assert torch.equal(layer.gate_up_proj.weight, gate_up)
        assert torch.equal(layer.down_proj.weight, mlp.down_proj.weight[:, 24 * rank :][:, :24])
        assert torch.equal(layer.att_norm.weight, family.hf.model.layers[1].input_layernorm.weight)
        assert checkpoint.bytes_read == 4 * (32 * 64 + 64 * 16 + 48 * 64 + 64 * 24 + 2 * 64)


def test_vocabulary_is_padded(tiny):
    family = tiny("llama-default")
    embedding = family.hf.model.embed_tokens.weight
    for rank in range(4):
        layer, checkpoint = layer_of_rank(LlamaPreAndPostLayerWeight, family.folder, rank, 4)
        own = embedding[17 * rank : 17 * (rank + 1)]  # 67 rows: 17, 17, 17 and 16
        assert layer.embed_tokens.weight.shape == layer.lm_head.weight.shape == (17, 64)
        assert torch.equal(layer.embed_tokens.weight[: len(own)], own)
        assert not layer.embed_tokens.weight[len(own) :].any()
        assert checkpoint.bytes_read == 4 * (2 * len(own) * 64 + 64)


def test_fused_heads_are_opened(tiny):
    family = tiny("bloom-8")
    attention = family.hf.transformer.h[0].self_attention
    q, k, v = attention.query_key_value.weight.unflatten(0, (8, 3, 8)).unbind(1)
    for rank in range(2):
        layer, checkpoint = layer_of_rank(BloomTransformerLayerWeight, family.folder, rank, 2, 0)
        heads = slice(4 * rank, 4 * rank + 4)
        assert torch.equal(layer.qkv_proj.weight, torch.cat([part[heads].flatten(0, 1) for part in (q, k, v)]))
        assert (layer.o_proj.bias is None) == (rank > 0)
        assert checkpoint.bytes_read == layer.num_bytes


class Router(BaseLayerWeight):
    gate = Replicated("gate", bias=True, out_size="num_experts")
    down = RowParallel("down", bias=True)


def test_summands_and_copies():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_experts": 5}
    inner, hidden = torch.randn(3, 12), torch.randn(3, 8)

    def work(group):
        layer = Router(Placement(group, torch.float32, torch.device("cpu")), sizes)
        layer.load(DummyCheckpoint(dummy_tensors([layer]), seed=0))
        part = inner.chunk(group.size, dim=1)[group.rank]
        return layer.gate(hidden), layer.down(part), layer.down.reduced(part)

    [(gate, whole, _)] = [work(TpGroup())]
    results = run_ranks(3, work)
    for copied, _, reduced in results:
        assert torch.equal(copied, gate)
        torch.testing.assert_close(reduced, whole)
    torch.testing.assert_close(sum(summand for _, summand, _ in results), whole)


def test_numbers_of_ranks(tiny):
    assert tp_sizes(tiny("llama-default").folder) == [1, 2, 4, 8]
    assert tp_sizes(tiny("bloom-6").folder) == [1, 2, 3, 6]


@pytest.mark.parametrize(
    "rank, size, group, words",
    [
        (0, 3, ThreadGroup.of_size(3)[0], "num_attention_heads=8 does not divide by world_size=3; nearest: 2"),
        (0, 2, None, "world_size=2 needs a tp_group"),
        (0, 2, ThreadGroup.of_size(2)[1], "tp_group is rank 1 of 2, the model rank 0 of 2"),
        (2, 2, None, "tp_rank=2 is not one of world_size=2 ranks"),
    ],
)
def test_refused(tiny, rank, size, group, words):
    with pytest.raises(ConfigError, match=words):
        load_model(tiny("llama-default").folder, max_total_token_num=64, tp_rank=rank, world_size=size, tp_group=group)


def test_kv_heads_that_do_not_fit_the_ranks(tiny):
    folder = tiny("qwen3-kv3").folder
    with pytest.raises(ConfigError, match="num_key_value_heads=3 neither divides by tensor_parallel_size=2 nor"):
        load_model(folder, max_total_token_num=64, world_size=2, tp_group=ThreadGroup.of_size(2)[0])


@pytest.mark.parametrize("name, size", [("llama-default", 4), ("qwen3", 2), ("bloom-8", 2)])
def test_a_step_in_parts_gives_the_logits_of_the_whole(tiny, rows, sequences, name, size, monkeypatch):
    """Parts that divide a prompt, with sums that are made late, in prefills alone and beside decodes."""
    monkeypatch.setattr(token_parts, "MIN_TOKENS", 4)
    monkeypatch.setattr(token_parts, "_ALIGNMENT", 8)
    divided, folder = [], tiny(name).folder

    def work(group):
        model = load_model(
            folder,
            max_total_token_num=256,
            tp_rank=group.rank,
            world_size=group.size,
            tp_group=group,
            max_num_seqs=8,
        )
        driver = rows(model)
        logits = driver.step(dict(enumerate(sequences)))
        mixed = driver.step({i: [7 + i] * (1 + 5 * i) for i in range(len(sequences))})
        divided.append(group.num_started)
        return torch.stack([*logits.values(), *mixed.values()])

    whole, parts = run_ranks(size, work), run_ranks(size, work, overlaps=True)
    assert divided[:size] == [0] * size and min(divided[size:]) > 0
    for found, expected in zip(parts, whole):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
