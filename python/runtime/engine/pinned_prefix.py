"""A cached prefix that is kept."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class PinnedPrefix:
    """Held by `LLM.pin_prefix`. As a context manager it unpins at the end.

    Attributes:
        num_tokens: of the prompt, in its full KV blocks; 0: the prompt does not fill one.
    """

    def __init__(self, num_tokens: int, unpin: Callable[[], bool]) -> None:
        self.num_tokens = num_tokens
        self._unpin = unpin

    def unpin(self) -> bool:
        """Lets the blocks go. False: they had gone before."""
        return self._unpin()

    def __enter__(self) -> PinnedPrefix:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unpin()
