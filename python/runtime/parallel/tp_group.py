"""The ranks that hold one model together, as a layer sees them."""

from torch import Tensor


class TpGroup:
    """This rank's place in the group and the collectives over it; this class itself is the group of one.

    Attributes:
        rank: 0 .. size - 1.
        size: number of ranks.
    """

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks; may overwrite x."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """x [..., n] of every rank side by side in rank order, [..., size * n]."""
        return x
