"""ALiBi (Press et al., 2022): attention falls off with distance, by a slope per head."""

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """float32 [num_heads]: 2^(-8 i / n) for the largest power of two n; further heads take the odd half steps."""
    power = 1 << (num_heads.bit_length() - 1)
    whole_steps = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    half_steps = [2.0 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return torch.tensor(whole_steps + half_steps)
