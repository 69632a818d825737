"""The plain-torch ops: paging against dense attention, and bits that do not depend on the company a row keeps."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from runtime.kernels import ops

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16


class PagedBatch:
    """Rows of random length whose keys and values lie in shuffled blocks; every other slot holds NaN."""

    def __init__(self, seq_lens, new_tokens, block_size=4, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        self.seq_lens, self.new_tokens = seq_lens, new_tokens
        self.keys = [randn(n, KV_HEADS, HEAD_DIM) for n in seq_lens]
        self.values = [randn(n, KV_HEADS, HEAD_DIM) for n in seq_lens]
        self.queries = [randn(n, HEADS, HEAD_DIM) for n in seq_lens]
        blocks = [math.ceil(n / block_size) for n in seq_lens]
        ids = (torch.randperm(sum(blocks), generator=generator) + 1).int().split(blocks)
        self.k_cache = torch.full((sum(blocks) + 1, KV_HEADS, block_size, HEAD_DIM), float("nan"), dtype=dtype)
        self.v_cache = self.k_cache.clone()
        batch = len(seq_lens)
        self.b_loc = torch.zeros(batch + 3, max(blocks), dtype=torch.int32)
        self.b_row = torch.randperm(batch + 2, generator=generator)[:batch].int()
        for i, n in enumerate(seq_lens):
            self.b_loc[self.b_row[i], : blocks[i]] = ids[i]
            position = torch.arange(n)
            slots = ids[i].long()[position // block_size] * block_size + position % block_size
            ops.kv_store(self.keys[i], self.values[i], slots, self.k_cache, self.v_cache)
        self.b_seq_len = torch.tensor(seq_lens, dtype=torch.int32)
        self.b_start_loc = F.pad(torch.tensor(new_tokens).cumsum(0), (1, 0)).int()

    def new_queries(self):
        return [q[n - new :] for q, n, new in zip(self.queries, self.seq_lens, self.new_tokens)]

    def context(self, **options):
        q = torch.cat(self.new_queries())
        out = ops.context_attention(
            q, self.k_cache, self.v_cache, self.b_loc, self.b_row, self.b_start_loc, self.b_seq_len,
            max(self.new_tokens), sm_scale=HEAD_DIM**-0.5, **options,
        )  # fmt: skip
        return list(out.split(self.new_tokens))

    def token(self, **options):
        q = torch.stack([q[-1] for q in self.queries])
        return ops.token_attention(
            q, self.k_cache, self.v_cache, self.b_loc, self.b_row, self.b_seq_len, max(self.seq_lens),
            sm_scale=HEAD_DIM**-0.5, **options,
        )  # fmt: skip

    def dense(self, i, alibi_slopes=None, sliding_window=0, soft_cap=0.0):
        """Row i's attention of every position, over all its keys at once, in float64."""
        q, k, v = (x[i].double().transpose(0, 1) for x in (self.queries, self.keys, self.values))
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (k, v))
        scores = q @ k.mT * HEAD_DIM**-0.5
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        position = torch.arange(self.seq_lens[i])
        distance = position[:, None] - position
        if alibi_slopes is not None:
            scores = scores - alibi_slopes.double().view(-1, 1, 1) * distance
        hidden = (distance < 0) | (distance >= (sliding_window or math.inf))
        return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1)


OPTIONS = [
    {},
    {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.7, 0.35])},
    {"sliding_window": 5},
    {"soft_cap": 2.0, "sliding_window": 300},
]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_attention_equals_dense(block_size, options, deterministic):
    batch = PagedBatch([3, 1, 40, 9, 530], [3, 1, 7, 1, 260], block_size)
    context, token = (f(deterministic=deterministic, **options) for f in (batch.context, batch.token))
    for i, new in enumerate(batch.new_tokens):
        dense = batch.dense(i, **options)
        torch.testing.assert_close(context[i].double(), dense[-new:], rtol=0, atol=2e-5)
        torch.testing.assert_close(token[i].double(), dense[-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_attention_depends_on_nothing_else(dtype, options):
    seq_lens = [3, 1, 40, 9, 530]
    whole = PagedBatch(seq_lens, seq_lens, dtype=dtype).context(deterministic=True, **options)
    for new_tokens, block_size in [([1] * 5, 4), ([2, 1, 33, 5, 17], 1), ([3, 1, 1, 2, 255], 16)]:
        part = PagedBatch(seq_lens, new_tokens, block_size, dtype).context(deterministic=True, **options)
        assert all(torch.equal(a, b[-len(a) :]) for a, b in zip(part, whole))
    token = PagedBatch(seq_lens, [1] * 5, dtype=dtype).token(deterministic=True, **options)
    assert all(torch.equal(a, b[-1]) for a, b in zip(token, whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_in, num_out", [(64, 96), (100, 37), (688, 256)])
def test_deterministic_linear_rows_do_not_depend_on_the_batch(num_in, num_out, dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(70, num_in).to(dtype), torch.randn(num_out, num_in).to(dtype), torch.randn(num_out)
    whole = ops.linear(x, weight, bias.to(dtype), deterministic=True)
    torch.testing.assert_close(whole, F.linear(x, weight, bias.to(dtype)))
    for first in (0, 1, 7, 23):
        for count in (1, 2, 15, 16, 17, 33, 47):
            part = ops.linear(x[first : first + count], weight, bias.to(dtype), deterministic=True)
            assert torch.equal(part, whole[first : first + count])


ROW_OPS = {
    "rms_norm": lambda x, w, b: ops.rms_norm(x, x.flip(1).clone(), w, 1e-5),
    "layer_norm": lambda x, w, b: ops.layer_norm(x, x.flip(1).clone(), w, b, 1e-5),
    "silu_and_mul": lambda x, w, b: ops.silu_and_mul(torch.cat((x, x.flip(1)), dim=1)),
    "gelu_tanh": lambda x, w, b: ops.gelu_tanh(x),
}


@pytest.mark.parametrize("op", ROW_OPS.values(), ids=ROW_OPS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 37, 688])
def test_rows_do_not_depend_on_the_batch(op, dtype, size):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((33, size), (size,), (size,)))
    whole = op(x, weight, bias)
    for first, count in [(0, 1), (5, 1), (3, 2), (1, 17)]:
        assert torch.equal(op(x[first : first + count], weight, bias), whole[first : first + count])


def test_norms_leave_the_sum_in_the_residual():
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
    total = x + residual
    y = ops.rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    torch.testing.assert_close(y, total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * weight)


def test_activations_equal_torch():
    x = torch.randn(5, 24)
    torch.testing.assert_close(ops.silu_and_mul(x), F.silu(x[:, :12]) * x[:, 12:])
    torch.testing.assert_close(ops.gelu_tanh(x), F.gelu(x, approximate="tanh"))


def test_embedding_gives_zeros_outside_its_shard():
    weight = torch.randn(4, 3)
    y = ops.embedding(torch.tensor([3, 4, 7, 8], dtype=torch.int32), weight, 4)
    assert torch.equal(y, torch.stack([torch.zeros(3), weight[0], weight[3], torch.zeros(3)]))


def test_rotation_turns_pairs_and_leaves_the_rest():
    angles = torch.rand(9, 2)
    q, k, v = torch.randn(3, HEADS, 6), torch.randn(3, KV_HEADS, 6), torch.randn(3, KV_HEADS, 6)
    position_ids, slots = torch.tensor([0, 8, 3], dtype=torch.int32), torch.tensor([7, 2, 4])
    k_cache, v_cache = torch.zeros(2, 3, KV_HEADS, 4, 6).unbind(0)
    rotated, key = q.clone(), k.clone()
    ops.rotary_kv_store(rotated, key, v, angles.cos(), angles.sin(), position_ids, slots, k_cache, v_cache)
    turn = torch.polar(torch.ones(3, 1, 2), angles[position_ids.long()].unsqueeze(1))
    for before, after in ((q, rotated), (k, key)):
        expected = torch.view_as_real(torch.complex(before[..., :2], before[..., 2:4]) * turn)
        torch.testing.assert_close(after, torch.cat((*expected.unbind(-1), before[..., 4:]), dim=-1))
    assert torch.equal(k_cache[slots // 4, :, slots % 4], key) and torch.equal(v_cache[slots // 4, :, slots % 4], v)


def test_blocks_are_copied_in_pairs():
    cache = torch.randn(5, 2, 4, 3)
    expected = cache[[0, 3, 2, 3, 0]]
    ops.copy_blocks(cache, cache, torch.tensor([[3, 1], [0, 4]], dtype=torch.int32))
    assert torch.equal(cache, expected)


def test_a_cpu_never_imports_triton():
    code = (
        "import sys, torch, runtime.kernels.ops as o; o.gelu_tanh(torch.ones(1, 2)); sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
