"""The streaming and the matrix kernel against exact products; one order of addition when deterministic."""

import pytest
import torch
from harness import TOLERANCE, assert_close, gpu, poisoned, randn, strided

from runtime.kernels.linear import launch_gemm, launch_gemv, linear
from runtime.kernels.linear_config import GemmConfig, GemvConfig

HALF_TYPES = [torch.float16, torch.bfloat16]
GEMMS = [
    GemmConfig(16, 32, 64, num_warps=4, num_stages=2),
    GemmConfig(16, 32, 64, num_warps=4, num_stages=2, splits=3, tma=False),
    GemmConfig(16, 32, 32, num_warps=4, num_stages=2, splits=2, fold=True),
    GemmConfig(16, 64, 64, num_warps=4, num_stages=2, splits=2, swap=True),
]


def exact(x, weight, bias):
    """In float64; weights are scaled so that results are of order one."""
    y = x.double() @ weight.double().T
    return (y if bias is None else y + bias.double()).to(x.dtype)


def operands(num_rows, num_out, num_in, dtype, device):
    x = randn(num_rows, num_in, dtype=dtype, device=device)
    weight = randn(num_out, num_in, dtype=dtype, device=device, seed=1, scale=num_in**-0.5)
    return x, weight, randn(num_out, dtype=dtype, device=device, seed=2)


@pytest.mark.parametrize(
    "num_rows, num_out, num_in",
    [
        *[(1, 48, 80), (5, 33, 264), (40, 48, 80)],
        *[gpu(1, 6144, 4096), gpu(2, 6144, 4096), gpu(33, 4096, 14336), gpu(64, 1024, 3072), gpu(200, 4000, 11008)],
        *[gpu(1000, 1024, 2048)],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("deterministic", [False, True])
def test_matches_exact_product(num_rows, num_out, num_in, dtype, deterministic, device):
    x, weight, bias = operands(num_rows, num_out, num_in, dtype, device)
    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 and device.type != "cpu" else TOLERANCE[dtype]
    for b in (None, bias):
        assert_close(linear(x, weight, b, deterministic=deterministic), exact(x, weight, b), **tolerance)


@pytest.mark.parametrize("num_rows", [3, 20])
@pytest.mark.parametrize("config", GEMMS, ids=str)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_every_form_of_the_matrix_kernel(num_rows, config, dtype, device):
    x, weight, bias = operands(num_rows, 72, 272, dtype, device)
    out = poisoned(num_rows, 72, dtype=dtype, device=device)
    launch_gemm(x, weight, bias, out, config)
    assert_close(out, exact(x, weight, bias))
    launch_gemm(x, weight, bias, out.fill_(float("nan")), config)  # counters are left at zero
    assert_close(out, exact(x, weight, bias))


@pytest.mark.parametrize("num_out, num_in", [(40, 128), (37, 200)])
def test_streaming_kernel(num_out, num_in, device):
    x, weight, bias = operands(1, num_out, num_in, torch.bfloat16, device)
    out = poisoned(1, num_out, dtype=torch.bfloat16, device=device)
    launch_gemv(x, weight, bias, out, GemvConfig(8, 64, 4))
    assert_close(out, exact(x, weight, bias))


@pytest.mark.parametrize("num_rows", [1, 5])
def test_strided_operands(num_rows, device):
    x, weight, bias = operands(num_rows, 48, 80, torch.float16, device)
    out = strided(poisoned(num_rows, 48, dtype=torch.float16, device=device), pad=5)
    linear(strided(x), strided(weight), bias, deterministic=True, out=out)
    assert_close(out, exact(x, weight, bias))


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_tokens(deterministic, device):
    x, weight, bias = operands(0, 48, 80, torch.float16, device)
    assert linear(x, weight, bias, deterministic=deterministic).shape == (0, 48)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize(
    "num_out, num_in", [(48, 272), gpu(6144, 4096), gpu(4096, 14336), gpu(1024, 2048), gpu(28672, 4096)]
)
def test_deterministic_rows_do_not_depend_on_their_number(num_out, num_in, dtype, device):
    most = 20 if device.type == "cpu" else 1024
    x, weight, bias = operands(most, num_out, num_in, dtype, device)
    whole = linear(x, weight, bias, deterministic=True)
    for count in (1, 7, 16, 64, 256):
        if count < most:
            assert torch.equal(linear(x[:count], weight, bias, deterministic=True), whole[:count]), count
