"""CUDA graphs of decode steps: one of the model and two of the sampler for each bucket of batch sizes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from runtime.kernels.step_state import StepOutputs

if TYPE_CHECKING:
    from runtime.engine.model_runner import ModelRunner

_SMALL = (1, 2, 4)
_STEP_OF_8, _UP_TO = 8, 64
_STEP_OF_16 = 16


def batch_buckets(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, 16, 24 .. 64, 80, 96 .. and the limit itself."""
    sizes = [
        *_SMALL,
        *range(_STEP_OF_8, _UP_TO + 1, _STEP_OF_8),
        *range(_UP_TO + _STEP_OF_16, max_num_seqs, _STEP_OF_16),
    ]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class Replayable(Protocol):
    """A captured graph, or what stands for one in a test."""

    def replay(self) -> None:
        """Queues the captured work on the current stream."""


class DecodeGraphs:
    """Captured once, before the first step; a step replays the smallest bucket that holds it.

    The rows between a step's batch and its bucket are padding that `prepare_step` has written.

    Args:
        outputs: what the sampler's graphs write.
    """

    def __init__(self, runner: ModelRunner, outputs: StepOutputs) -> None:
        self._runner = runner
        self._outputs = outputs
        self._buckets = batch_buckets(runner.max_num_seqs)
        self._model: dict[int, Replayable] = {}
        self._sampler: dict[tuple[int, bool], Replayable] = {}
        # by batch size: a lookup, no search while serving
        self._bucket_of = [0] + [
            next(bucket for bucket in self._buckets if bucket >= size) for size in range(1, runner.max_num_seqs + 1)
        ]

    def replay_model(self, num_rows: int) -> None:
        """Runs the model of a decode step up to its logits."""
        self._model[self._bucket_of[num_rows]].replay()

    def replay_sampler(self, num_rows: int, *, greedy_only: bool) -> None:
        """Runs the sampler of the same step."""
        self._sampler[self._bucket_of[num_rows], greedy_only].replay()

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures every bucket, largest first, so that one memory pool serves them all."""
        collects = gc.isenabled()
        gc.collect()
        gc.disable()  # a tensor freed in the midst of a capture would end it
        try:
            for bucket in reversed(self._buckets):
                self._capture_bucket(bucket)
        finally:
            if collects:
                gc.enable()

    def record(self, function: Callable[[], None]) -> Replayable:
        """Captures what `function` launches on the current stream, which is not the default one."""
        function()  # compiles and allocates what a capture must not
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
        return graph

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _capture_bucket(self, bucket: int) -> None:
        runner = self._runner
        state = runner.infer_state(
            num_rows=bucket,
            num_tokens=bucket,
            total_token_num=bucket * runner.model.max_model_len,
            max_len=runner.model.max_model_len,
            max_new_tokens=1,
            is_prefill=False,
        )
        logits: list[torch.Tensor] = []

        def model() -> None:
            logits[:] = [runner.forward(runner.inputs.input_ids[:bucket], state)]

        def sampler(greedy_only: bool) -> Callable[[], None]:
            return lambda: runner.sample(logits[0], self._outputs, greedy_only=greedy_only)

        self._model[bucket] = self.record(model)
        for greedy_only in (True, False):
            self._sampler[bucket, greedy_only] = self.record(sampler(greedy_only))
