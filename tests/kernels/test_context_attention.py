"""Attention over ragged batches, cached prefixes included, against the reference."""

import pytest
import torch
from attention_cases import ATTENTION_TOLERANCE, VARIANTS, extras, paged_batch
from harness import DTYPES, assert_close, gpu, poisoned

from runtime.kernels import reference
from runtime.kernels.context_attention import context_attention


def check(batch, dtype, **options):
    expected = reference.context_attention(*batch.context_args(), **options)
    out = poisoned(*batch.q.shape, dtype=dtype, device=batch.q.device)
    assert context_attention(*batch.context_args(), **options, out=out) is out
    assert_close(out, expected, **ATTENTION_TOLERANCE[dtype])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "num_new, lens",
    [
        ([3, 1, 40, 1], [3, 9, 280, 70]),  # no prefix, decode rows among prompts, a prefix
        ([1, 1], [5, 30]),  # decode rows alone
        gpu([1024, 333], [1024, 333]),
        gpu([1, 512, 1, 1, 2, 77], [900, 2048, 1, 4096, 3000, 77]),
    ],
)
def test_matches_reference(num_new, lens, variant, deterministic, device):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape = dict(heads=4, kv_heads=2, head_dim=16) if device.type == "cpu" else dict(heads=32, kv_heads=8, head_dim=128)
    batch = paged_batch(num_new, lens, **shape, dtype=dtype, device=device)
    check(batch, dtype, sm_scale=0.2, deterministic=deterministic, **extras(variant, shape["heads"], device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [24, gpu(64), gpu(80), gpu(96), gpu(112), gpu(128), gpu(256)])
def test_head_dims(head_dim, dtype, device):
    num_new, lens = ([5, 12], [5, 70]) if device.type == "cpu" else ([64, 1, 300], [64, 200, 500])
    batch = paged_batch(num_new, lens, head_dim=head_dim, dtype=dtype, device=device)
    check(batch, dtype, sm_scale=head_dim**-0.5)


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (3, 1), (17, 1), gpu(32, 8), gpu(20, 2), gpu(64, 1)])
def test_groups(heads, kv_heads, device):
    batch = paged_batch([5, 12], [5, 70], heads=heads, kv_heads=kv_heads, dtype=torch.float16, device=device)
    check(batch, torch.float16, sm_scale=0.2)


@pytest.mark.parametrize("block_size", [1, 2, 16, 64, gpu(4), gpu(8), gpu(32), gpu(128)])
def test_block_sizes(block_size, device):
    num_new, lens = ([4, 9], [4, 130]) if device.type == "cpu" else ([4, 300], [4, 2000])
    batch = paged_batch(num_new, lens, block_size=block_size, head_dim=64, device=device)
    check(batch, torch.float32, sm_scale=0.2)


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, block_size",
    [(2, 1, 16, 64), gpu(32, 8, 128, 64), gpu(8, 8, 128, 64), gpu(10, 2, 64, 128), gpu(64, 1, 128, 64)],
)
@pytest.mark.parametrize("num_new, lens", [([3, 1, 40], [3, 90, 130]), gpu([1024, 1, 333, 2], [1024, 5, 3000, 65])])
def test_a_tile_of_keys_in_one_block(heads, kv_heads, head_dim, block_size, num_new, lens, device):
    shape = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    check(paged_batch(num_new, lens, **shape, dtype=dtype, device=device), dtype, sm_scale=head_dim**-0.5)


def test_deterministic_rows_do_not_depend_on_chunks_or_batch(device):
    on_gpu = device.type != "cpu"
    lens = [2048, 100, 1500] if on_gpu else [270, 3, 20]
    shape = dict(heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16) if on_gpu else {}
    batch = paged_batch(lens, lens, **shape, device=device)
    options = dict(sm_scale=0.1, deterministic=True)
    whole = context_attention(*batch.context_args(), **options)
    spans = [(0, 512), (512, 1300), (1300, 1301), (1301, 2048)] if on_gpu else [(0, 256), (256, 257), (257, 270)]
    for first, stop in spans:
        chunk = batch.select([0], (first, stop))
        assert torch.equal(context_attention(*chunk.context_args(), **options), whole[first:stop]), (first, stop)
