"""The norm of parts that other ranks have copied here."""

import pytest
import torch
from harness import DTYPES, assert_close, gpu, poisoned, randn, strided

from runtime.kernels import reference
from runtime.kernels.sum_norm import sum_norm


def inputs(size, num_tokens, hidden, dtype, device):
    """parts [size, ...], residual, weight, bias."""
    parts = randn(size, num_tokens, hidden, dtype=dtype, device=device)
    residual = randn(num_tokens, hidden, dtype=dtype, device=device, seed=1)
    weight, bias = (randn(hidden, dtype=dtype, device=device, seed=seed) for seed in (2, 3))
    return parts, residual, weight, bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, rank, num_tokens, hidden", [(2, 0, 3, 72), (2, 1, 3, 72), gpu(4, 2, 300, 8192)])
def test_matches_reference(size, rank, num_tokens, hidden, dtype, with_bias, device):
    parts, residual, weight, bias = inputs(size, num_tokens, hidden, dtype, device)
    x, expected_residual = parts[rank].clone(), residual.clone()
    parts[rank] = float("nan")  # not read
    vectors = weight, bias if with_bias else None
    expected = reference.sum_norm(x, parts, rank, expected_residual, *vectors, 1e-5)
    assert_close(sum_norm(x, parts, rank, residual, *vectors, 1e-5), expected)
    assert torch.equal(residual, expected_residual)
    assert not expected.isnan().any()


def test_every_rank_gets_the_same_bits(device):
    parts, residual, weight, _ = inputs(4, 5, 72, torch.bfloat16, device)
    results = []
    for rank in range(4):
        own = residual.clone()
        results.append((sum_norm(parts[rank], parts, rank, own, weight, None, 1e-5), own))
    for out, own in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(own, results[0][1])


def test_reads_and_writes_strided_rows(device):
    parts, residual, weight, _ = inputs(3, 4, 72, torch.float32, device)
    expected = reference.sum_norm(parts[1], parts, 1, residual.clone(), weight, None, 1e-5)
    out = strided(poisoned(4, 72, device=device), pad=1)
    sum_norm(strided(parts[1]), strided(parts, pad=5), 1, strided(residual, pad=7), weight, None, 1e-5, out=out)
    assert_close(out, expected)


def test_may_write_over_x(device):
    parts, residual, weight, _ = inputs(2, 4, 72, torch.bfloat16, device)
    expected = sum_norm(parts[0], parts, 0, residual.clone(), weight, None, 1e-5)
    assert torch.equal(sum_norm(parts[0], parts, 0, residual, weight, None, 1e-5, out=parts[0]), expected)
