"""What the launch of every kernel shares: programmatic dependent launch, warps and block sizes by width."""

import functools
from typing import Any

import torch


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device, (9, 0) for sm_90; (0, 0) in the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def pdl_options(tensor: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of a launch whose kernel takes USE_PDL.

    With it the kernel starts while its predecessor drains. It must call `gdc_wait` before its first access to memory
    that an earlier kernel may touch, in every program: a kernel that does not wait lets its successors overtake.
    Off before sm_90 and in the interpreter.
    """
    return {"USE_PDL": True, "launch_pdl": True} if capability(tensor.device) >= (9, 0) else {"USE_PDL": False}


def warps_for(block_size: int) -> int:
    """One to 16 warps for a row of `block_size` elements, a power of two: 16 elements a thread."""
    return min(max(block_size // 512, 1), 16)
