"""What kernel tests share: shapes for the GPU alone, tolerances, strided inputs, poisoned outputs."""

import pytest
import torch

# a result rounded once from float32 differs from the reference's by one unit in the last place at most;
# float32 results differ by the order of their sums
TOLERANCE = {
    torch.float32: dict(rtol=2e-5, atol=2e-5),
    torch.float16: dict(rtol=2e-3, atol=1e-3),
    torch.bfloat16: dict(rtol=1.6e-2, atol=1e-2),
}
DTYPES = list(TOLERANCE)


def gpu(*values):
    """A parameter set with real shapes, for a CUDA device only: the interpreter would take minutes."""
    return pytest.param(*values, marks=pytest.mark.gpu)


def randn(*shape, dtype=torch.float32, device="cpu", seed=0, scale=1.0):
    """Seeded normal values, drawn on the host: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)


def strided(tensor, pad=3):
    """The same values with a longer row stride and NaN between the rows; only the last dimension is contiguous."""
    wide = poisoned(*tensor.shape[:-1], tensor.shape[-1] + pad, dtype=tensor.dtype, device=tensor.device)
    wide[..., : tensor.shape[-1]] = tensor
    return wide[..., : tensor.shape[-1]]


def poisoned(*shape, dtype=torch.float32, device="cpu"):
    """A tensor of NaN, or of the largest integer."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(shape, value, dtype=dtype, device=device)


def assert_close(actual, expected, dtype=None, **tolerance):
    """`torch.testing.assert_close` on the host with the tolerance of `dtype` (by default the tensor's)."""
    tolerance = tolerance or TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(actual.cpu(), expected.cpu(), **tolerance)
