"""The ops that the package calls: on a GPU the Triton kernel of that name, on meta `shapes`, elsewhere `reference`.

The kernel of op `x` is function `x` of kernels/x.py, imported at its first use on a CUDA tensor, so that a machine
without a GPU never imports Triton. An op without such a file runs its reference on every device.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from . import reference, shapes

__all__ = [
    "all_reduce",
    "all_reduce_norm",
    "context_attention",
    "copy_blocks",
    "embedding",
    "gelu_tanh",
    "kv_store",
    "layer_norm",
    "linear",
    "prepare_step",
    "rms_norm",
    "rotary_kv_store",
    "sample",
    "silu_and_mul",
    "sum_norm",
    "token_attention",
]

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _cuda_op(name: str) -> Callable[..., Any]:
    module = f"{__package__}.{name}"
    source = reference if importlib.util.find_spec(module) is None else importlib.import_module(module)
    op: Callable[..., Any] = getattr(source, name)
    return op


def _by_device(reference_op: Callable[P, R], argument: int = 0) -> Callable[P, R]:
    """The op itself, dispatched on the device of that argument, which is passed by position."""
    name = reference_op.__name__
    shape_op: Callable[..., Any] = getattr(shapes, name, reference_op)

    @functools.wraps(reference_op)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        if args[argument].is_cuda:  # type: ignore[attr-defined]
            return _cuda_op(name)(*args, **kwargs)  # type: ignore[no-any-return]
        if args[0].is_meta:  # type: ignore[attr-defined]
            return shape_op(*args, **kwargs)  # type: ignore[no-any-return]
        return reference_op(*args, **kwargs)

    return dispatch


all_reduce = _by_device(reference.all_reduce)
all_reduce_norm = _by_device(reference.all_reduce_norm)
context_attention = _by_device(reference.context_attention)
copy_blocks = _by_device(reference.copy_blocks, 2)  # either pool may be the host's
embedding = _by_device(reference.embedding)
gelu_tanh = _by_device(reference.gelu_tanh)
kv_store = _by_device(reference.kv_store)
layer_norm = _by_device(reference.layer_norm)
linear = _by_device(reference.linear)
prepare_step = _by_device(reference.prepare_step)
rms_norm = _by_device(reference.rms_norm)
rotary_kv_store = _by_device(reference.rotary_kv_store)
sample = _by_device(reference.sample)
silu_and_mul = _by_device(reference.silu_and_mul)
sum_norm = _by_device(reference.sum_norm)
token_attention = _by_device(reference.token_attention)
