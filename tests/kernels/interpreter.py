"""Corrects Triton's interpreter (3.6 to 3.9), which keeps bfloat16 as uint16 and computes with those integers.

`install()` makes loads, casts (round to nearest even), arithmetic, comparisons and `tl.dot` of bfloat16 agree with
torch. Reductions and scans over bfloat16 stay wrong: kernels convert to float32 first, which they should anyway.
It also gives comparisons the type int1; they keep their operands' type there, which breaks a scalar one in a mask.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_ARITHMETIC = (
    *("fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fma", "fabs", "clampf", "precise_divf", "approx_divf"),
    *("minimumf", "minnumf", "maximumf", "maxnumf", "exp", "exp2", "log", "log2", "sin", "cos", "erf"),
    *("sqrt", "precise_sqrt", "rsqrt", "floor", "ceil"),
)


def _is_bfloat16(value):
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widen(value):
    """A bfloat16 handle as float32; anything else as it is."""
    if not _is_bfloat16(value):
        return value
    return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(handle):
    """A float32 handle as bfloat16, rounded to nearest even."""
    data = np.ascontiguousarray(handle.data, dtype=np.float32)
    bits = data.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(data), np.uint16(0x7FC0), rounded), tl.bfloat16)


def _in_float32(operation):
    """The operation computed in float32 and rounded once."""

    def call(self, *operands):
        if not any(map(_is_bfloat16, operands)):
            return operation(self, *operands)
        return _narrow(operation(self, *map(_widen, operands)))

    return call


def _as_bool(compare):
    def call(self, *operands):
        return TensorHandle(compare(self, *map(_widen, operands)).data, tl.int1)

    return call


def _through_float32(cast):
    def call(self, src, dst_type, *rounding):
        target = dst_type.scalar
        if not _is_bfloat16(src) and target != tl.bfloat16:
            return cast(self, src, dst_type, *rounding)
        wide = _widen(src)
        if target != tl.bfloat16:
            return wide if target == tl.float32 else cast(self, wide, dst_type, *rounding)
        wide = wide if wide.dtype.scalar == tl.float32 else cast(self, wide, tl.float32, *rounding)
        return _narrow(wide)

    return call


def _dot_in_float32(dot):
    def call(self, a, b, acc, *options):
        return dot(self, _widen(a), _widen(b), acc, *options)

    return call


def install():
    """Patches the interpreter of this process; a second call changes nothing."""
    builder = InterpreterBuilder
    if getattr(builder, "corrects_bfloat16", False):
        return
    for name in dir(builder):
        if name.startswith(("create_fcmp", "create_icmp")):
            setattr(builder, name, _as_bool(getattr(builder, name)))
        elif name.removeprefix("create_") in _ARITHMETIC:
            setattr(builder, name, _in_float32(getattr(builder, name)))
    builder.cast_impl = _through_float32(builder.cast_impl)
    builder.create_fp_to_fp = _through_float32(builder.create_fp_to_fp)
    builder.create_dot = _dot_in_float32(builder.create_dot)
    builder.corrects_bfloat16 = True
