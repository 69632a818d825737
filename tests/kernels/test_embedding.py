"""Rows of this rank's part of the vocabulary; zeros for ids of others."""

import pytest
import torch
from harness import DTYPES, gpu, randn, strided

from runtime.kernels import reference
from runtime.kernels.embedding import embedding


@pytest.mark.parametrize("num_tokens, vocab_size, hidden_size", [(1, 16, 64), (9, 50, 1100), gpu(8192, 32000, 1024)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(num_tokens, vocab_size, hidden_size, dtype, device):
    weight = randn(vocab_size, hidden_size, device=device).to(dtype)
    ids = torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0)).to(device, torch.int32)
    assert torch.equal(embedding(ids, weight), reference.embedding(ids, weight))


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_ids_of_other_shards_give_zero_rows(id_dtype, device):
    weight = randn(10, 33, device=device)
    ids = torch.tensor([19, 20, 29, 30, 0, 2**31 - 1], dtype=id_dtype, device=device)
    out = embedding(ids, strided(weight), vocab_start=20)
    assert torch.equal(out[1:3], weight[[0, 9]])
    assert not out[[0, 3, 4, 5]].any()
