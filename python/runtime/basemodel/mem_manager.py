"""The KV tensors of one rank and, on rank 0, the allocator of their blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._core import BlockAllocator
from ..errors import CapacityError


class MemManager:
    """KV cache of one rank.

    Block 0 is never handed out: padding reads and writes it, so the tensors hold num_blocks + 1 blocks.

    Args:
        kv_cache: [layers, 2, num_blocks + 1, kv_heads of this rank, block_size, head_dim], keys first.
        allocator: hands out the blocks; None on ranks above 0. An engine gives it to its Scheduler, from then its only
            caller.

    Attributes:
        num_blocks, block_size: blocks that can be handed out, and tokens of each.
    """

    def __init__(self, kv_cache: Tensor, allocator: BlockAllocator | None = None) -> None:
        self.kv_cache, self.allocator = kv_cache, allocator
        self.num_blocks, self.block_size = kv_cache.shape[2] - 1, kv_cache.shape[4]
        self._layers = [(keys, values) for keys, values in kv_cache.unbind(0)]
        self._unused: list[int] | None = None

    def layer(self, layer_num: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [num_blocks + 1, kv_heads, block_size, head_dim] each."""
        return self._layers[layer_num]

    def extend(self, b_loc: Tensor, b_seq_len: Sequence[int]) -> None:
        """Gives row i of `b_loc` fresh blocks until it holds b_seq_len[i] tokens: for driving a model by hand.

        Not for a model that an engine runs: there the scheduler alone gives out blocks, and this knows nothing of it.

        Raises:
            CapacityError: too few blocks are left; nothing was given.
        """
        if self._unused is None:
            self._unused = list(range(self.num_blocks, 0, -1))
        missing = [
            (row, index)
            for row, length in enumerate(b_seq_len)
            for index in range(-(-length // self.block_size))
            if b_loc[row, index] == 0
        ]
        if len(missing) > len(self._unused):
            raise CapacityError(
                f"{len(missing)} KV blocks are needed, {len(self._unused)} of {self.num_blocks} are free",
                hint="max_total_token_num sets it",
            )
        for row, index in missing:
            b_loc[row, index] = self._unused.pop()

    def release(self, b_loc: Tensor, row: int) -> None:
        """Takes back what `extend` gave row `row`, and clears it."""
        if self._unused is not None:
            self._unused.extend(block for block in b_loc[row].tolist() if block)
        b_loc[row] = 0
