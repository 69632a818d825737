"""On the meta device an op returns what its reference returns: shape, dtype and strides."""

import inspect

import pytest
import torch

from runtime.kernels import ops, reference, shapes

X, RESIDUAL = (torch.randn(5, 32, dtype=torch.bfloat16) for _ in "xr")
WEIGHT = torch.randn(32, dtype=torch.bfloat16)
Q = torch.randn(5, 6, 8)[:, :4]  # as a part of a fused projection: strided
CACHE = torch.zeros(3, 2, 4, 8)
TABLE = torch.ones(5, 1, dtype=torch.int32)
ROW, ONE = torch.arange(5, dtype=torch.int32), torch.ones(5, dtype=torch.int32)
CALLS = {
    "rms_norm": (X, RESIDUAL, WEIGHT, 1e-5),
    "layer_norm": (X, None, WEIGHT, WEIGHT, 1e-5),
    "silu_and_mul": (X,),
    "gelu_tanh": (X,),
    "embedding": (ROW, torch.randn(9, 32)),
    "linear": (X, torch.randn(7, 32, dtype=torch.bfloat16), torch.randn(7, dtype=torch.bfloat16)),
    "context_attention": (Q, CACHE, CACHE, TABLE, ROW, torch.arange(6, dtype=torch.int32), ONE, 1),
    "token_attention": (Q, CACHE, CACHE, TABLE, ROW, ONE, 1),
    "rotary_kv_store": (Q, Q[:, :2], Q[:, :2], torch.ones(9, 4), torch.ones(9, 4), ROW, ROW.long(), CACHE, CACHE),
    "kv_store": (Q[:, :2], Q[:, :2], ROW.long(), CACHE, CACHE),
    "copy_blocks": (CACHE, CACHE.clone(), torch.tensor([[1, 2]], dtype=torch.int32)),
}


def on_meta(value):
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", CALLS)
def test_returns_what_the_reference_returns(name):
    options = {"sm_scale": 1.0} if "attention" in name else {}
    expected = getattr(reference, name)(*CALLS[name], **options)
    found = getattr(ops, name)(*map(on_meta, CALLS[name]), **options)
    if expected is None:
        assert found is None
    else:
        assert found.is_meta and (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.stride() == expected.stride()


@pytest.mark.parametrize(
    "name", [name for name in CALLS if "out" in inspect.signature(getattr(reference, name)).parameters]
)
def test_a_given_output_is_returned(name):
    out = torch.empty(1, device="meta")
    options = {"sm_scale": 1.0} if "attention" in name else {}
    assert getattr(shapes, name)(*map(on_meta, CALLS[name]), **options, out=out) is out


def test_every_op_has_a_shape():
    assert all(callable(getattr(shapes, name)) for name in ops.__all__)
