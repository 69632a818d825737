"""Times of kernels on a CUDA device: graph replays over rotated inputs; neither launches nor the cache count."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

S = TypeVar("S")

# Distinct bytes that one replay touches at least: several times the L2 of any device at hand.
ROTATED_BYTES = 256 << 20
MAX_SETS = 64


def num_input_sets(bytes_per_call: int) -> int:
    """Input sets that together leave the cache behind."""
    return max(1, min(MAX_SETS, -(-ROTATED_BYTES // max(1, bytes_per_call))))


def capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what `run` launches, warmed up before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def microseconds(
    call: Callable[[S], object], inputs: Sequence[S], *, num_replays: int = 9, min_calls: int = 16
) -> float:
    """Median time of one call in a captured sequence that goes round the inputs."""
    sequence = list(inputs) * -(-min_calls // len(inputs))

    def run() -> None:
        for one in sequence:
            call(one)

    graph = capture(run)
    graph.replay()
    times: list[float] = []
    for _ in range(num_replays):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times) * 1e3 / len(sequence)


@functools.cache
def copy_bandwidth() -> float:
    """Bytes per second of a large device-to-device copy, read and written bytes counted.

    By a kernel: in a graph, `copy_` becomes a copy node, which an H100 runs a fifth slower.
    """
    source = torch.empty(1 << 29, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    copy = functools.partial(torch.bitwise_or, source, 0, out=target)
    return 2 * source.nbytes / (microseconds(lambda _: copy(), [source], min_calls=4) * 1e-6)
