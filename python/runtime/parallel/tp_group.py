"""The ranks that hold one model together, as a layer sees them."""

from __future__ import annotations

from torch import Tensor

from ..kernels import ops


class PendingSum:
    """A sum over the ranks that was started, to be taken once, in the order of the starts."""

    def __init__(self, total: Tensor) -> None:
        self._total = total

    def norm(self, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """As `TpGroup.all_reduce_norm` of what is summed."""
        return norm_of(self._wait(), residual, weight, bias, eps)

    def _wait(self) -> Tensor:
        return self._total


class TpGroup:
    """This rank's place in the group and the collectives over it; this class itself is the group of one.

    All ranks make the same calls in the same order. Once a rank has failed, every call raises CommunicatorError; on
    CUDA, where calls only queue work, `poll` does.

    Attributes:
        rank: 0 .. size - 1.
        size: number of ranks.
        num_calls: of collectives so far, the same on all ranks once they have come as far; those in a CUDA graph count
            when it is captured.
        overlaps: a sum that `start_sum` began goes on while this rank computes.
    """

    rank: int = 0
    size: int = 1
    overlaps: bool = False
    num_calls: int = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks; may overwrite x."""
        return x

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """RMSNorm, or with a bias LayerNorm, of the sum of x over the ranks + residual, which becomes that in place.

        Args:
            x, residual: [tokens, hidden]; x may be overwritten.
            weight, bias: [hidden].
        """
        return norm_of(self.all_reduce(x), residual, weight, bias, eps)

    def start_sum(self, x: Tensor) -> PendingSum:
        """Begins the sum of x over the ranks; x belongs to it until it is taken."""
        return PendingSum(self.all_reduce(x))

    def all_gather(self, x: Tensor) -> Tensor:
        """x [..., n] of every rank side by side in rank order, [..., size * n]."""
        return x

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """x of rank `root`; may overwrite x."""
        return x

    def barrier(self) -> None:
        """Returns when all ranks have come here; on CUDA, with the work they queued before."""

    def reserve(self, num_rows: int, row_bytes: int) -> None:
        """Room for fast sums of up to `num_rows` rows of `row_bytes`, where devices can; a call of all ranks."""

    def reserve_overlap(self, num_rows: int, row_bytes: int) -> None:
        """Room for what `start_sum` begins, of up to `num_rows` rows of `row_bytes`; a call of all ranks."""

    def poll(self) -> None:
        """Raises CommunicatorError if the group has failed; never waits."""

    def abort(self, cause: str) -> None:
        """Ends the group for `cause`, from any thread: calls under way raise it, and so does every later one."""

    def close(self) -> None:
        """Leaves the group; the other ranks' next collective fails. Idempotent."""


def norm_of(total: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """RMSNorm, or with a bias LayerNorm, of total + residual, which becomes that in place."""
    if bias is None:
        return ops.rms_norm(total, residual, weight, eps)
    return ops.layer_norm(total, residual, weight, bias, eps)
