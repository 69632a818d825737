"""One rank's part of the all-reduces over peer memory, in plain torch on the host; see `reference`.

What the other ranks write must be there: a thread that waited for them here would wait for itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .peer_memory import BITS, EMPTY, PeerMemory


def _filled(x: Tensor) -> Tensor:
    """The elements as integers, none of which looks as if it had not arrived."""
    bits = x.view(BITS[x.dtype])
    return torch.where(bits == EMPTY, EMPTY - 1, bits)


def _push(row: Tensor, index: int, half: int, to: int, peers: PeerMemory) -> None:
    peers.host_view(to, BITS[row.dtype])[half, peers.rank, index, : len(row)] = _filled(row)


def _take(like: Tensor, index: int, half: int, source: int, peers: PeerMemory) -> Tensor:
    """The part that rank `source` has written to this one, which is emptied."""
    part = peers.host_view(peers.rank, BITS[like.dtype])[half, source, index, : len(like)]
    assert not (part == EMPTY).any(), f"row {index} of rank {source} has not arrived"
    row = part.clone().view(like.dtype)
    part.fill_(EMPTY)
    return row


def _sum_of_row(x: Tensor, index: int, peers: PeerMemory, two_shot: bool) -> Tensor:
    half, owner = int(peers.turns[index]), index % peers.size
    others = [rank for rank in range(peers.size) if rank != peers.rank]
    peers.turns[index] = 1 - half
    for rank in [owner] if two_shot else others:
        if rank != peers.rank:
            _push(x, index, half, rank, peers)
    if two_shot and owner != peers.rank:
        return _take(x, index, half, owner, peers)
    total = torch.zeros_like(x, dtype=torch.float32)
    for source in range(peers.size):
        total += x if source == peers.rank else _take(x, index, half, source, peers)
    for rank in others if two_shot else []:
        _push(total.to(x.dtype), index, half, rank, peers)
    return total.to(x.dtype)


def all_reduce(x: Tensor, peers: PeerMemory, *, two_shot: bool = False, out: Tensor | None = None) -> Tensor:
    """The sum of x over the ranks, added in rank order, rounded once.

    Args:
        x: [rows, n], at most what `peers` holds.
    """
    total = torch.stack([_sum_of_row(row, index, peers, two_shot) for index, row in enumerate(x)]) if len(x) else x
    return total.clone() if out is None else out.copy_(total)


def all_reduce_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    peers: PeerMemory,
    *,
    two_shot: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm, or with a bias LayerNorm, of (sum of x over the ranks) + residual, which becomes that sum in place.

    Args:
        x: [tokens, hidden], at most what `peers` holds.
        residual: [tokens, hidden].
        weight, bias: [hidden].
    """
    total = all_reduce(x, peers, two_shot=two_shot).float() + residual.float()
    residual.copy_(total)
    if bias is None:
        y = F.rms_norm(total, weight.shape, weight.float(), eps)
    else:
        y = F.layer_norm(total, weight.shape, weight.float(), bias.float(), eps)
    return y.to(x.dtype) if out is None else out.copy_(y)
