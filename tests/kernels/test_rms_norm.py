"""`rms_norm` against the reference; each row by itself, and over strided rows."""

import pytest
import torch
from harness import DTYPES, assert_close, gpu, poisoned, randn, strided

from runtime.kernels import reference
from runtime.kernels.rms_norm import rms_norm


@pytest.mark.parametrize("shape", [(1, 128), (7, 1000), (3, 33), gpu((2048, 4096)), gpu((5, 8192)), gpu((257, 2048))])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_matches_reference(shape, dtype, with_residual, device):
    x = randn(*shape, dtype=dtype, device=device)
    residual = randn(*shape, dtype=dtype, device=device, seed=1) if with_residual else None
    expected_residual = residual.clone() if with_residual else None
    weight = 1 + randn(shape[1], dtype=dtype, device=device, seed=2, scale=0.1)
    expected = reference.rms_norm(x, expected_residual, weight, 1e-5)

    assert_close(rms_norm(x, residual, weight, 1e-5), expected)
    if with_residual:
        assert torch.equal(residual, expected_residual)


def test_reads_and_writes_strided_rows(device):
    x, residual, weight = randn(5, 100, device=device), randn(5, 100, device=device, seed=1), randn(100, device=device)
    expected = reference.rms_norm(x, residual.clone(), weight, 1e-5)
    out = strided(poisoned(5, 100, device=device), pad=1)
    rms_norm(strided(x), strided(residual, pad=7), weight, 1e-5, out=out)
    assert_close(out, expected)


def test_a_row_does_not_depend_on_its_neighbours(device):
    x, weight = randn(33, 1000, device=device), randn(1000, device=device)
    assert torch.equal(rms_norm(x, None, weight, 1e-6)[31:], rms_norm(x[31:], None, weight, 1e-6))


def test_no_tokens(device):
    assert rms_norm(randn(0, 64, device=device), None, randn(64, device=device), 1e-6).shape == (0, 64)
