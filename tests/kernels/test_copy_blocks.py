"""Blocks between two pools, and masks from the host to their rows, against the reference."""

import pytest
import torch
from harness import gpu, poisoned, randn

from runtime.kernels import reference
from runtime.kernels.copy_blocks import copy_blocks


@pytest.mark.parametrize("shape", [(3, 1, 5), (2, 8, 16, 40), gpu((8, 16, 128))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_reference(shape, dtype, device):
    src, dst = randn(6, *shape, device=device).to(dtype), poisoned(4, *shape, dtype=dtype, device=device)
    pairs = torch.tensor([[5, 0], [1, 3]], dtype=torch.int32, device=device)
    expected = dst.clone()
    reference.copy_blocks(src, expected, pairs)
    copy_blocks(src, dst, pairs)
    assert torch.equal(dst.isnan(), expected.isnan())
    assert torch.equal(dst.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("num_words", [14, 2049])
def test_copies_masks_to_their_rows(num_words, device):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(-(1 << 31), 1 << 31, (4, num_words), dtype=torch.int32, generator=generator).to(device)
    allowed = torch.full((6, num_words), -1, dtype=torch.int32, device=device)
    copy_blocks(masks, allowed, torch.tensor([[0, 4], [1, 0], [2, 5]], dtype=torch.int32, device=device))
    assert torch.equal(allowed[[4, 0, 5]], masks[:3]) and (allowed[1:4] == -1).all()


@pytest.mark.gpu
def test_reads_pinned_host_memory(device):
    src = randn(4, 8, 64).pin_memory()
    dst = poisoned(4, 8, 64, device=device)
    copy_blocks(src, dst, torch.tensor([[2, 1]], dtype=torch.int32, device=device))
    assert torch.equal(dst[1].cpu(), src[2])
