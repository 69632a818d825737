"""`silu_and_mul` and `gelu_tanh` against the reference, at large values and over strided rows."""

import pytest
import torch
from harness import DTYPES, assert_close, gpu, randn, strided

from runtime.kernels import reference
from runtime.kernels.gelu_tanh import gelu_tanh
from runtime.kernels.silu_and_mul import silu_and_mul

SHAPES = [(1, 128), (3, 1500), (2, 33), gpu((1024, 14336)), gpu((257, 2048))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_matches_reference(shape, dtype, device):
    x = randn(shape[0], 2 * shape[1], dtype=dtype, device=device, scale=3.0)
    assert_close(silu_and_mul(x), reference.silu_and_mul(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_tanh_matches_reference(shape, dtype, device):
    x = randn(*shape, dtype=dtype, device=device, scale=3.0)
    assert_close(gelu_tanh(x), reference.gelu_tanh(x))


@pytest.mark.parametrize("op", [silu_and_mul, gelu_tanh])
def test_large_values_saturate(op, device):
    x = torch.tensor([[-1e4, 1e4, 1.0, 1.0]], device=device)
    assert_close(op(x), getattr(reference, op.__name__)(x))


@pytest.mark.parametrize("op", [silu_and_mul, gelu_tanh])
def test_reads_strided_rows(op, device):
    x = randn(4, 66, device=device)
    assert torch.equal(op(strided(x)), op(x))
