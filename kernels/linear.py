"""`x @ weight^T + bias`: a streaming kernel for one row, a matrix kernel for few rows or a fixed order, or cuBLAS."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_tile import dot_precision
from .device import supports_tma
from .launch import pdl_options
from .linear_config import GemmConfig, GemvConfig, deterministic_gemm_config, linear_config
from .prefetch import LINE, prefetch_l2
from .workspace import workspace

# Ranges of K begin at multiples of this, so that every BLOCK_K adds the same products in the same order.
K_ALIGNMENT = 128
# Of the weight, by each program before the wait for x, where reading the weight is what counts.
PREFETCH_BYTES = 32 << 10


@triton.jit
def _gemv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    weight_stride,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One row of x: each program streams BLOCK_N rows of the weight once, past the cache.

    The first tile of the weight is asked for before the wait for the kernel that makes x.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    weight_ptrs = weight_ptr + rows.to(tl.int64)[:, None] * weight_stride + ks[None, :]
    if EVEN:
        weight = tl.load(weight_ptrs, eviction_policy="evict_first")
    else:
        weight = tl.load(
            weight_ptrs, mask=(rows < N)[:, None] & (ks < K)[None, :], other=0.0, eviction_policy="evict_first"
        )
    if USE_PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + ks, mask=ks < K, other=0.0).to(tl.float32)
    acc = weight.to(tl.float32) * x[None, :]
    for k in range(BLOCK_K, K, BLOCK_K):
        if EVEN:
            weight = tl.load(weight_ptrs + k, eviction_policy="evict_first")
            x = tl.load(x_ptr + k + ks).to(tl.float32)
        else:
            inside = k + ks < K
            weight = tl.load(
                weight_ptrs + k, mask=(rows < N)[:, None] & inside[None, :], other=0.0, eviction_policy="evict_first"
            )
            x = tl.load(x_ptr + k + ks, mask=inside, other=0.0).to(tl.float32)
        acc += weight.to(tl.float32) * x[None, :]
    out = tl.sum(acc, 1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=rows < N)


@triton.jit
def _product(
    x,
    weight,
    row,
    col,
    k_start,
    k_stop,
    M,
    N,
    K,
    x_stride,
    weight_stride,
    TMA: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tile at (row, col) over k_start..k_stop, K in order; SWAP: transposed, the weight being the first operand."""
    ks = tl.arange(0, BLOCK_K)
    if SWAP:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if not TMA:
        rows = row + tl.arange(0, BLOCK_M)
        cols = col + tl.arange(0, BLOCK_N)
        # rows past the end repeat the last one; their results are not stored
        x_ptrs = x + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * x_stride + ks[None, :]
        weight_ptrs = weight + tl.minimum(cols, N - 1).to(tl.int64)[:, None] * weight_stride + ks[None, :]
    for k in range(k_start, k_stop, BLOCK_K):
        if TMA:
            x_tile = x.load([row, k])
            weight_tile = weight.load([col, k])
        elif EVEN:
            x_tile = tl.load(x_ptrs + k)
            weight_tile = tl.load(weight_ptrs + k, eviction_policy="evict_first")
        else:
            inside = (k + ks < K)[None, :]
            x_tile = tl.load(x_ptrs + k, mask=inside, other=0.0)
            weight_tile = tl.load(weight_ptrs + k, mask=inside, other=0.0, eviction_policy="evict_first")
        if SWAP:
            acc = tl.dot(weight_tile, tl.trans(x_tile), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x_tile, tl.trans(weight_tile), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _gemm_kernel(
    x,
    weight,
    weight_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    x_stride,
    weight_stride,
    out_stride,
    M,
    N,
    K,
    k_split,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    USE_PDL: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    FOLD: tl.constexpr,
    GROUP_M: tl.constexpr,
    PREFETCH_LINES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One output tile a program, or with parallel splits one range of K of it.

    A result is the sum, in order, of one partial per range of K. FOLD: one program makes them all; otherwise the
    program that arrives last adds them. Both give the same bits.
    """
    program = tl.program_id(0)
    if FOLD:
        split = 0
        tile = program
    else:
        split = program % SPLITS
        tile = program // SPLITS
    num_m = tl.cdiv(M, BLOCK_M)
    # GROUP_M tiles of rows go together over all columns, so that their x stays in the cache
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first_m = tile // per_group * GROUP_M
    group_m = tl.minimum(num_m - first_m, GROUP_M)
    row = (first_m + tile % per_group % group_m) * BLOCK_M
    col = tile % per_group // group_m * BLOCK_N
    k_start = split * k_split
    if USE_PDL:
        if PREFETCH_LINES > 0:  # the weight is older than the kernel that makes x
            ahead = k_start + tl.arange(0, PREFETCH_LINES) * (LINE // weight_ptr.dtype.element_ty.itemsize)
            weight_rows = tl.minimum(col + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
            prefetch_l2(weight_ptr + weight_rows[:, None] * weight_stride + tl.minimum(ahead, K - 1)[None, :])
        gdc_wait()
        gdc_launch_dependents()

    acc = _product(
        x, weight, row, col, k_start, tl.minimum(k_start + k_split, K), M, N, K, x_stride, weight_stride,
        TMA, SWAP, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    rows = row + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    if FOLD:
        if SPLITS > 1:  # a loop that never runs would still cost the registers of a second tile
            for k_next in range(k_split, K, k_split):
                acc += _product(
                    x, weight, row, col, k_next, tl.minimum(k_next + k_split, K), M, N, K, x_stride, weight_stride,
                    TMA, SWAP, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
        finished = True
    else:
        if SWAP:
            inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        else:
            inner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts_ptr = partial_ptr + tile.to(tl.int64) * (SPLITS * BLOCK_M * BLOCK_N) + inner
        tl.store(parts_ptr + split * (BLOCK_M * BLOCK_N), acc)
        tl.debug_barrier()  # every thread's stores come before the arrival is counted
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu")
        finished = arrived == SPLITS - 1
        if finished:
            tl.debug_barrier()
            acc = tl.load(parts_ptr, cache_modifier=".cg")
            for i in tl.static_range(1, SPLITS):
                acc += tl.load(parts_ptr + i * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            tl.store(counter_ptr + tile, 0)
    if finished:
        if HAS_BIAS:
            bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
            if SWAP:
                acc += bias[:, None]
            else:
                acc += bias[None, :]
        out = acc.to(out_ptr.dtype.element_ty)
        row_offset = rows.to(tl.int64) * out_stride
        if SWAP:
            tl.store(out_ptr + row_offset[None, :] + cols[:, None], out, mask=(cols < N)[:, None] & (rows < M)[None, :])
        else:
            tl.store(out_ptr + row_offset[:, None] + cols[None, :], out, mask=(rows < M)[:, None] & (cols < N)[None, :])


def launch_gemv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, config: GemvConfig
) -> None:
    """The streaming kernel; x has one row."""
    num_out, num_in = weight.shape
    block_k = min(config.block_k, triton.next_power_of_2(num_in))
    _gemv_kernel[(triton.cdiv(num_out, config.block_n),)](
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=bias,
        out_ptr=out,
        weight_stride=weight.stride(0),
        N=num_out,
        K=num_in,
        HAS_BIAS=bias is not None,
        EVEN=num_out % config.block_n == 0 and num_in % block_k == 0,
        BLOCK_N=config.block_n,
        BLOCK_K=block_k,
        num_warps=config.num_warps,
        **pdl_options(x),
    )


def _can_use_tma(x: torch.Tensor, weight: torch.Tensor) -> bool:
    aligned = all(t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in (x, weight))
    return aligned and supports_tma(x.device)


def launch_gemm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, config: GemmConfig
) -> None:
    """The matrix kernel, any number of rows."""
    num_rows, num_in = x.shape
    num_out = weight.shape[0]
    device = x.device
    tma = config.tma and _can_use_tma(x, weight)
    k_split = triton.cdiv(triton.cdiv(num_in, config.splits), K_ALIGNMENT) * K_ALIGNMENT
    splits = triton.cdiv(num_in, k_split)
    fold = config.fold or splits == 1
    tiles = triton.cdiv(num_rows, config.block_m) * triton.cdiv(num_out, config.block_n)
    partials = 0 if fold else tiles * splits * config.block_m * config.block_n
    _gemm_kernel[(tiles if fold else tiles * splits,)](
        x=TensorDescriptor.from_tensor(x, [config.block_m, config.block_k]) if tma else x,
        weight=TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k]) if tma else weight,
        weight_ptr=weight,
        bias_ptr=bias,
        out_ptr=out,
        partial_ptr=None if fold else workspace("linear_partial", partials, torch.float32, device),
        counter_ptr=None if fold else workspace("linear_counter", tiles, torch.int32, device),
        x_stride=x.stride(0),
        weight_stride=weight.stride(0),
        out_stride=out.stride(0),
        M=num_rows,
        N=num_out,
        K=num_in,
        k_split=k_split,
        HAS_BIAS=bias is not None,
        TMA=tma,
        SWAP=config.swap,
        EVEN=num_in % config.block_k == 0,
        PRECISION=dot_precision(x.dtype),
        SPLITS=splits,
        FOLD=fold,
        GROUP_M=8,
        PREFETCH_LINES=triton.cdiv(PREFETCH_BYTES, 128 * config.block_n) if config.block_m <= 64 else 0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **pdl_options(x),
    )


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x @ weight^T + bias`, accumulated in float32.

    Few rows go to the kernel that was measured fastest for the weight's shape on this device, the rest to cuBLAS.

    Args:
        x: `[tokens, in]`; weight: `[out, in]`; bias: `[out]` or None. Last dimensions contiguous.
        deterministic: one order of addition over K per weight shape, whatever the number of tokens.
    """
    assert x.shape[1] == weight.shape[1] and x.stride(1) == 1 and weight.stride(1) == 1
    if deterministic:
        config: GemmConfig | GemvConfig | None = deterministic_gemm_config(x, weight)
    else:
        config = linear_config(x, weight)
    if config is None:
        if out is None:
            return F.linear(x, weight, bias)
        return torch.addmm(bias, x, weight.t(), out=out) if bias is not None else torch.mm(x, weight.t(), out=out)
    if out is None:
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return out
    if isinstance(config, GemvConfig):
        launch_gemv(x, weight, bias, out, config)
    else:
        launch_gemm(x, weight, bias, out, config)
    return out
