"""What a terminal shows of things that take longer than two seconds; nothing goes anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

_DELAY_S = 2.0


def announce(what: str) -> None:
    """Says on a terminal what begins and cannot be counted."""
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int | None, unit: str) -> Iterator[Callable[[], Any]]:
    """A function to be called once for each `unit` that is done; without a terminal, or tqdm, it does nothing.

    Args:
        total: None: not known before.
    """
    bar = _bar(total, unit) if sys.stderr.isatty() else None
    if bar is None:
        yield lambda: None
        return
    with bar:
        yield bar.update


def _bar(total: int | None, unit: str) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm(total=total, unit=unit, file=sys.stderr, delay=_DELAY_S, leave=False)
