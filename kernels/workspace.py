"""Scratch memory that lives as long as the process, so that captured graphs may refer to it."""

from __future__ import annotations

import torch

# Buffers that grew stay referenced: a graph captured before may still hold their addresses.
_buffers: dict[tuple[str, torch.device], list[torch.Tensor]] = {}


def workspace(name: str, num_elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A buffer of at least `num_elements`, zero when it is first given.

    Callers on one device share it in stream order; a caller that needs zeros again leaves zeros behind.
    """
    generations = _buffers.setdefault((name, device), [])
    if not generations or generations[-1].numel() < num_elements:
        generations.append(torch.zeros(num_elements, dtype=dtype, device=device))
    return generations[-1]
