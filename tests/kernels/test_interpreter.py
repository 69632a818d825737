"""The interpreter must be right before a kernel can be: bfloat16 against torch, scalar masks."""

import pytest
import torch
import triton
import triton.language as tl
from harness import randn


@triton.jit
def _arithmetic_kernel(a_ptr, b_ptr, out_ptr, greater_ptr, N: tl.constexpr):
    cols = tl.arange(0, N)
    a, b = tl.load(a_ptr + cols), tl.load(b_ptr + cols)
    tl.store(out_ptr + cols, a + b)
    tl.store(out_ptr + N + cols, a * b)
    tl.store(out_ptr + 2 * N + cols, a - b)
    tl.store(greater_ptr + cols, (a > b).to(tl.int32))


@triton.jit
def _cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    cols = tl.arange(0, N)
    tl.store(out_ptr + cols, tl.load(x_ptr + cols).to(out_ptr.dtype.element_ty))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, acc)


def test_bfloat16_arithmetic(device):
    a, b = (randn(64, dtype=torch.bfloat16, device=device, seed=seed) for seed in (0, 1))
    out, greater = a.new_empty(3, 64), a.new_empty(64, dtype=torch.int32)
    _arithmetic_kernel[(1,)](a, b, out, greater, N=64)
    assert torch.equal(out, torch.stack([a + b, a * b, a - b]))
    assert torch.equal(greater, (a > b).int())


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_casts_round_as_torch_does(source, target, device):
    if source == torch.int32 == target:
        pytest.skip("no cast")
    x = randn(256, device=device, scale=300.0).to(source)
    out = torch.empty(256, dtype=target, device=device)
    _cast_kernel[(1,)](x, out, N=256)
    assert torch.equal(out, x.to(target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dot_accumulates_in_float32(dtype, device):
    a, b = (randn(16, 16, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    out = torch.empty(16, 16, device=device)
    _dot_kernel[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-4, atol=1e-4)


@triton.jit
def _scalar_mask_kernel(limit_ptr, out_ptr, N: tl.constexpr):
    cols = tl.arange(0, N)
    tl.store(out_ptr + cols, cols, mask=(cols < N // 2) & (tl.load(limit_ptr) > 5))


def test_a_scalar_comparison_is_part_of_a_mask(device):
    limits, out = torch.tensor([5, 6], device=device), torch.full((2, 8), -1, dtype=torch.int32, device=device)
    for i in range(2):
        _scalar_mask_kernel[(1,)](limits[i:], out[i], N=8)
    assert out.tolist() == [[-1] * 8, [0, 1, 2, 3, -1, -1, -1, -1]]
