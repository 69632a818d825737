"""`layer_norm` against the reference, and over strided rows."""

import pytest
import torch
from harness import DTYPES, assert_close, gpu, poisoned, randn, strided

from runtime.kernels import reference
from runtime.kernels.layer_norm import layer_norm


@pytest.mark.parametrize("shape", [(1, 128), (7, 1000), (3, 33), gpu((2048, 4096)), gpu((257, 2048))])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_matches_reference(shape, dtype, with_residual, device):
    x = 3 + randn(*shape, dtype=dtype, device=device)  # a mean that a wrong variance would show
    residual = randn(*shape, dtype=dtype, device=device, seed=1) if with_residual else None
    expected_residual = residual.clone() if with_residual else None
    weight = 1 + randn(shape[1], dtype=dtype, device=device, seed=2, scale=0.1)
    bias = randn(shape[1], dtype=dtype, device=device, seed=3)
    expected = reference.layer_norm(x, expected_residual, weight, bias, 1e-5)

    assert_close(layer_norm(x, residual, weight, bias, 1e-5), expected)
    if with_residual:
        assert torch.equal(residual, expected_residual)


def test_reads_and_writes_strided_rows(device):
    x, residual = randn(5, 100, device=device), randn(5, 100, device=device, seed=1)
    weight, bias = randn(100, device=device), randn(100, device=device, seed=2)
    expected = reference.layer_norm(x, residual.clone(), weight, bias, 1e-5)
    out = strided(poisoned(5, 100, device=device), pad=1)
    layer_norm(strided(x), strided(residual, pad=7), weight, bias, 1e-5, out=out)
    assert_close(out, expected)
