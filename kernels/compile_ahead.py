"""Compiles kernels side by side before the first of them runs: a cold start is mostly compilation, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import triton
from triton.runtime.jit import JITFunction


class _Turns(Executor):
    """Keeps what is submitted until `start`, which begins with this rank's turns.

    Ranks of one host share Triton's cache on disk and compile the same kernels: each begins elsewhere, and finds there
    what another was faster with.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._tasks: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.append((future, partial(fn, *args, **kwargs)))
        return future

    def start(self, rank: int, size: int) -> None:
        for turn in range(size):
            for future, work in self._tasks[(rank + turn) % size :: size]:
                self._pool.submit(_run, future, work)


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


@contextmanager
def compile_ahead(num_threads: int, *, rank: int = 0, size: int = 1) -> Iterator[None]:
    """Inside, a launch runs nothing, so what it would write is undefined; at the end its kernel is compiled.

    Args:
        num_threads: that compile.
        rank, size: of the processes of this host that compile the same.
    """
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        return run(self, *args, **{**options, "warmup": True})

    with ThreadPoolExecutor(num_threads, "runtime-compile") as pool:
        turns = _Turns(pool)
        try:
            with triton.AsyncCompileMode(turns):
                JITFunction.run = compile_only
                try:
                    yield
                finally:
                    turns.start(rank, size)
        finally:
            JITFunction.run = run
