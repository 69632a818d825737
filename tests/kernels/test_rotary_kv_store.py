"""Rotation, norms of heads and the slots that are written, against the reference; nothing else is written."""

import pytest
import torch
from harness import DTYPES, assert_close, gpu, poisoned, randn

from runtime.kernels import reference
from runtime.kernels.kv_store import kv_store
from runtime.kernels.rotary_kv_store import rotary_kv_store

# tokens, q heads, kv heads, head_dim, rotary_dim, block_size
SHAPES = [(1, 1, 1, 32, 32, 1), (5, 12, 3, 40, 40, 4), (3, 9, 9, 48, 20, 16)]
GPU_SHAPES = [gpu(s) for s in [(256, 32, 8, 128, 128, 16), (2048, 32, 8, 128, 128, 16), (64, 16, 8, 96, 48, 32)]]


def new_tokens(num_tokens, num_q_heads, num_kv_heads, head_dim, block_size, dtype, device):
    """q, k, v as views of one qkv matrix, slots in random order, and an empty cache."""
    qkv = randn(num_tokens, num_q_heads + 2 * num_kv_heads, head_dim, dtype=dtype, device=device)
    num_blocks = -(-num_tokens // block_size) + 2
    slots = torch.randperm((num_blocks - 1) * block_size, generator=torch.Generator().manual_seed(0)) + block_size
    caches = [poisoned(num_blocks, num_kv_heads, block_size, head_dim, dtype=dtype, device=device) for _ in "kv"]
    return qkv.split([num_q_heads, num_kv_heads, num_kv_heads], dim=1), slots[:num_tokens].to(device), caches


@pytest.mark.parametrize("shape", SHAPES + GPU_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
def test_matches_reference(shape, dtype, with_norm, device):
    num_tokens, num_q_heads, num_kv_heads, head_dim, rotary_dim, block_size = shape
    (q, k, v), slots, caches = new_tokens(*shape[:4], block_size, dtype, device)
    positions = ((torch.arange(num_tokens) * 37 + 5) % 500).to(device, torch.int32)
    angles = torch.arange(500)[:, None] / 10.0 ** torch.linspace(0, 4, rotary_dim // 2)
    tables = angles.cos().to(device), angles.sin().to(device)
    norms = {}
    if with_norm:
        q_norm, k_norm = (1 + randn(head_dim, device=device, seed=s, scale=0.2).to(dtype) for s in (1, 2))
        norms = dict(q_norm=q_norm, k_norm=k_norm, eps=1e-6)

    expected_q, expected_caches = q.float(), [cache.float() for cache in caches]
    reference.rotary_kv_store(expected_q, k.float(), v.float(), *tables, positions, slots, *expected_caches, **norms)
    rotary_kv_store(q, k, v, *tables, positions, slots, *caches, **norms)
    assert_close(q.float(), expected_q, dtype)
    for cache, expected in zip(caches, expected_caches):
        assert torch.equal(cache.isnan(), expected.isnan())  # nothing but the slots is written
        assert_close(cache.float().nan_to_num(), expected.nan_to_num(), dtype)


@pytest.mark.parametrize("shape", SHAPES + GPU_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kv_store_writes_the_slots_and_nothing_else(shape, dtype, device):
    (_, k, v), slots, caches = new_tokens(*shape[:4], shape[5], dtype, device)
    expected = [cache.clone() for cache in caches]
    reference.kv_store(k, v, slots, *expected)
    kv_store(k, v, slots, *caches)
    for cache, wanted in zip(caches, expected):
        assert torch.equal(cache.isnan(), wanted.isnan())
        assert torch.equal(cache.nan_to_num(), wanted.nan_to_num())
