"""Sum of x over the ranks, by the kernel of all_reduce_norm.py."""

from torch import Tensor

from .all_reduce_norm import launch
from .peer_memory import PeerMemory


def all_reduce(x: Tensor, peers: PeerMemory, *, two_shot: bool = False, out: Tensor | None = None) -> Tensor:
    """The sum of x over the ranks, added in rank order in float32; see `all_reduce_norm`.

    Args:
        x: [rows, n], at most what `peers` holds.
        out: [rows, n], allocated when None; may be x.
    """
    return launch(x, None, None, None, 0.0, peers, two_shot, out)
