"""What tensors would take on a CUDA device, seen by running their code on the meta device.

`CachingAllocator` follows the rules of torch's (c10/cuda/CUDACachingAllocator.cpp, its defaults, one stream), so that
what is counted is what torch asks the driver for, cached and split blocks included.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ROUNDING = 512
_SMALL_SIZE, _SMALL_SEGMENT = 1 << 20, 2 << 20  # requests up to a MiB share segments of two
_MEDIUM_SIZE, _MEDIUM_SEGMENT = 10 << 20, 20 << 20
_LARGE_ROUNDING = 2 << 20


class Block:
    """A run of bytes in a segment, between its neighbours there."""

    def __init__(self, num_bytes: int, is_small: bool) -> None:
        self.num_bytes, self.is_small = num_bytes, is_small
        self.is_free = True
        self.before: Block | None = None
        self.after: Block | None = None


class CachingAllocator:
    """Best fit over segments that are never given back.

    Attributes:
        reserved: bytes of all segments.
        allocated, peak: bytes in use, and the most of them so far.
    """

    def __init__(self) -> None:
        self.reserved = self.allocated = self.peak = 0
        self._free: list[Block] = []

    @property
    def stuck(self) -> int:
        """Free bytes in segments of which a part is in use: emptying the cache does not give them back."""
        whole = sum(block.num_bytes for block in self._free if block.before is None and block.after is None)
        return self.reserved - self.allocated - whole

    def allocate(self, num_bytes: int) -> Block:
        size = max(-(-num_bytes // _ROUNDING), 1) * _ROUNDING
        is_small = size <= _SMALL_SIZE
        fits = [block for block in self._free if block.is_small == is_small and block.num_bytes >= size]
        block = min(fits, key=lambda fit: fit.num_bytes) if fits else self._new_segment(size, is_small)
        self._free.remove(block)
        rest = block.num_bytes - size
        if rest >= _ROUNDING if is_small else rest > _SMALL_SIZE:
            self._split(block, size)
        block.is_free = False
        self.allocated += block.num_bytes
        self.peak = max(self.peak, self.allocated)
        return block

    def free(self, block: Block) -> None:
        self.allocated -= block.num_bytes
        block.is_free = True
        self._free.append(block)
        if block.before is not None and block.before.is_free:
            self._join(block.before, block)
            block = block.before
        if block.after is not None and block.after.is_free:
            self._join(block, block.after)

    def _new_segment(self, size: int, is_small: bool) -> Block:
        if is_small:
            num_bytes = _SMALL_SEGMENT
        elif size < _MEDIUM_SIZE:
            num_bytes = _MEDIUM_SEGMENT
        else:
            num_bytes = -(-size // _LARGE_ROUNDING) * _LARGE_ROUNDING
        self.reserved += num_bytes
        self._free.append(Block(num_bytes, is_small))
        return self._free[-1]

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.num_bytes - size, block.is_small)
        block.num_bytes = size
        rest.before, rest.after, block.after = block, block.after, rest
        if rest.after is not None:
            rest.after.before = rest
        self._free.append(rest)

    def _join(self, block: Block, after: Block) -> None:
        self._free.remove(after)
        block.num_bytes += after.num_bytes
        block.after = after.after
        if block.after is not None:
            block.after.before = block


class DeviceBytes(TorchDispatchMode):
    """Counts, while it is active, the meta tensors that are made; each until its memory is released.

    Attributes:
        allocator: where they would lie.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator: CachingAllocator = CachingAllocator()
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping would import torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if _is_meta(leaf)}
        for leaf in tree_leaves(result):
            if _is_meta(leaf) and _storage_id(leaf) not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or storage.nbytes() == 0:
            return
        self._known.add(key)
        weakref.finalize(storage, self._release, key, self.allocator.allocate(storage.nbytes()))

    def _release(self, key: int, block: Block) -> None:
        self._known.discard(key)
        self.allocator.free(block)


def _storage_id(tensor: torch.Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found


def _is_meta(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_meta
