"""Memory of processes that serve for months: what a request needed is given back soon after it."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of mallopt(3)
_MMAP_BYTES = 256 << 10
_MAX_ARENAS = 2


def leave_out_of_collections() -> None:
    """What is alive now stays, so collections need not look at it.

    A full collection waits until what is new is a quarter of all that is alive. Without what was there from the start
    it comes sooner and takes less, and requests leave cycles.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # now the count of what is alive is 0


def return_large_blocks() -> None:
    """Blocks of some size, such as bodies, are mapped and unmapped.

    Otherwise glibc, once a large one was freed, takes the next ones from its heaps, of which it has one a thread, and
    they have holes ever after. Not for a process that computes: each of its tensors would be mapped anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_ARENA_MAX, _MAX_ARENAS)
