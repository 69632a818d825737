"""The ranks that hold one model together, as a layer sees them."""

from __future__ import annotations

from torch import Tensor

from ..kernels import ops


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

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """RMSNorm, or with a bias LayerNorm, of the sum of x over the ranks + residual, which becomes that in place.

        Args:
            x, residual: [tokens, hidden]; x may be overwritten.
            weight, bias: [hidden].
        """
        total = self.all_reduce(x)
        if bias is None:
            return ops.rms_norm(total, residual, weight, eps)
        return ops.layer_norm(total, residual, weight, bias, eps)

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

    def poll(self) -> None:
        """Raises CommunicatorError if the group has failed; never waits."""

    def abort(self, cause: str) -> None:
        """Ends the group for `cause`, from any thread: calls under way raise it, and so does every later one."""

    def close(self) -> None:
        """Leaves the group; the other ranks' next collective fails. Idempotent."""
