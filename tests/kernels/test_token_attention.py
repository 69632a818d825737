"""Attention of one token a row against the reference; padding, strides, large scores, graphs."""

import pytest
import torch
from attention_cases import ATTENTION_TOLERANCE, VARIANTS, extras, paged_batch
from harness import DTYPES, assert_close, gpu, poisoned

from runtime.kernels import reference
from runtime.kernels.context_attention import context_attention
from runtime.kernels.token_attention import token_attention


def check(batch, dtype, **options):
    expected = reference.token_attention(*batch.token_args(), **options)
    out = poisoned(*batch.q.shape, dtype=dtype, device=batch.q.device)
    assert token_attention(*batch.token_args(), **options, out=out) is out
    assert_close(out, expected, **ATTENTION_TOLERANCE[dtype])
    return out


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "lens", [[1, 5, 300, 65], gpu([1000] * 16), gpu([1, 7000, 17, 4096] * 8), gpu(list(range(1, 1024, 4)))]
)
def test_matches_reference(lens, variant, deterministic, device):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape = dict(heads=4, kv_heads=2, head_dim=16) if device.type == "cpu" else dict(heads=32, kv_heads=8, head_dim=128)
    batch = paged_batch([1] * len(lens), lens, **shape, dtype=dtype, device=device)
    check(batch, dtype, sm_scale=0.2, deterministic=deterministic, **extras(variant, shape["heads"], device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [24, gpu(64), gpu(80), gpu(96), gpu(112), gpu(128), gpu(256)])
def test_head_dims(head_dim, dtype, device):
    lens = [3, 70] if device.type == "cpu" else [1, 63, 64, 65, 1500]
    batch = paged_batch([1] * len(lens), lens, head_dim=head_dim, dtype=dtype, device=device)
    check(batch, dtype, sm_scale=head_dim**-0.5)


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (3, 1), (17, 1), gpu(32, 8), gpu(20, 2), gpu(64, 1)])
def test_groups(heads, kv_heads, device):
    batch = paged_batch([1, 1], [3, 70], heads=heads, kv_heads=kv_heads, dtype=torch.float16, device=device)
    check(batch, torch.float16, sm_scale=0.2)


@pytest.mark.parametrize("block_size", [1, 2, 16, 64, gpu(4), gpu(8), gpu(32), gpu(128)])
def test_block_sizes(block_size, device):
    lens = [3, 130] if device.type == "cpu" else [3, 130, 2000]
    batch = paged_batch([1] * len(lens), lens, block_size=block_size, head_dim=64, device=device)
    check(batch, torch.float32, sm_scale=0.2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_padding_gives_zeros(deterministic, device):
    batch = paged_batch([1] * 5, [1, 40, 7, 300, 2], device=device)
    batch.b_seq_len[[0, 2, 4]] = 0
    out = check(batch, torch.float32, sm_scale=0.2, deterministic=deterministic)
    assert not out[[0, 2, 4]].any() and out[[1, 3]].all()


def test_strided_rows_of_a_fused_projection(device):
    batch = paged_batch([1, 1], [9, 40], device=device)
    expected = reference.token_attention(*batch.token_args(), sm_scale=0.2)
    fused = poisoned(2, 8, 16, device=device)
    fused[:, 2:6] = batch.q
    batch.q = fused[:, 2:6]
    out = poisoned(2, 6, 16, device=device)[:, 1:5]
    assert_close(token_attention(*batch.token_args(), sm_scale=0.2, out=out), expected)


def test_large_scores_do_not_overflow(device):
    batch = paged_batch([1, 1], [9, 300], device=device)
    batch.q *= 100
    check(batch, torch.float32, sm_scale=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_one_graph_serves_every_length(deterministic, device):
    longest = [4096] * 8
    batch = paged_batch([1] * 8, longest, heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16, device=device)
    batch.k_cache.nan_to_num_(), batch.v_cache.nan_to_num_()
    out = torch.empty_like(batch.q)
    options = dict(sm_scale=0.1, deterministic=deterministic)
    token_attention(*batch.token_args(), **options, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token_attention(*batch.token_args(4096), **options, out=out)
    for lens in ([4096] * 8, [1] * 8, [1, 4000, 33, 64, 2, 999, 1000, 4096]):
        batch.b_seq_len.copy_(torch.tensor(lens, dtype=torch.int32))
        out.fill_(float("nan"))
        graph.replay()
        expected = reference.token_attention(*batch.token_args(4096), **options)
        assert_close(out, expected, **ATTENTION_TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("variant", ["plain", "alibi_window_cap"])
def test_deterministic_rows_do_not_depend_on_the_batch(variant, device):
    on_gpu = device.type != "cpu"
    lens = [1, 256, 257, 4000, 777, 512] * 43 if on_gpu else [1, 257, 300]
    shape = dict(heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16) if on_gpu else {}
    batch = paged_batch([1] * len(lens), lens, **shape, device=device)
    options = dict(sm_scale=0.1, deterministic=True, **extras(variant, shape.get("heads", 4), device))
    whole = token_attention(*batch.token_args(), **options)
    for rows in ([0], [2, 1], *([range(7), range(64)] if on_gpu else [])):
        part = batch.select(list(rows))
        assert torch.equal(token_attention(*part.token_args(), **options), whole[list(rows)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_deterministic_equals_context_attention(head_dim, dtype, device):
    """A decode row may also travel in a mixed step, and a preempted one is computed again as a prompt."""
    lens = [2, 300, 1025, 3000]
    shape = dict(heads=32, kv_heads=8, head_dim=head_dim, dtype=dtype, device=device)
    batch = paged_batch(lens, lens, **shape)
    options = dict(sm_scale=head_dim**-0.5, deterministic=True)
    prefill = context_attention(*batch.context_args(), **options)
    last = (batch.b_start_loc[1:] - 1).long()
    batch.q = batch.q[last]
    assert torch.equal(token_attention(*batch.token_args(), **options), prefill[last])
