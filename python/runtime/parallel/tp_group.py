"""The ranks that hold one model together, as a layer sees them."""

from torch import Tensor


class TpGroup:
    """This rank's place in the group and the collectives over it; this class itself is the group of one.

    All ranks make the same calls in the same order. Once a rank has failed, every call raises CommunicatorError; on
    CUDA, where calls only queue work, `poll` does.

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

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """x of rank `root`; may overwrite x."""
        return x

    def barrier(self) -> None:
        """Returns when all ranks have come here; on CUDA, with the work they queued before."""

    def poll(self) -> None:
        """Raises CommunicatorError if the group has failed; never waits."""

    def abort(self, cause: str) -> None:
        """Ends the group for `cause`, from any thread: calls under way raise it, and so does every later one."""

    def close(self) -> None:
        """Leaves the group; the other ranks' next collective fails. Idempotent."""
