"""CUDA graphs of decode steps: one of the model and two of the sampler for each bucket of batch sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


class DecodeGraphs:
    """Captured once, before the first step; a step replays the smallest bucket that holds it.

    The rows between a step's batch and its bucket are padding that `prepare_step` has written.
    """

    def __init__(self, runner: ModelRunner, outputs: StepOutputs) -> None:
        self._runner = runner
        self._outputs = outputs
        self._buckets = batch_buckets(runner.max_num_seqs)
        self._model: dict[int, torch.cuda.CUDAGraph] = {}
        self._sampler: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        # bucket of each batch size: a lookup, no search while serving
        self._bucket_of = [0] + [
            next(bucket for bucket in self._buckets if bucket >= size) for size in range(1, runner.max_num_seqs + 1)
        ]

    def fits(self, num_rows: int) -> bool:
        return num_rows < len(self._bucket_of) and bool(self._model)

    def replay(self, num_rows: int, *, greedy_only: bool) -> None:
        bucket = self._bucket_of[num_rows]
        self._model[bucket].replay()
        self._sampler[bucket, greedy_only].replay()

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures every bucket, largest first, so that one memory pool serves them all."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for bucket in reversed(self._buckets):
                self._capture_bucket(bucket, pool)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture_bucket(self, bucket: int, pool: Any) -> None:
        runner = self._runner
        state = runner.infer_state(
            num_rows=bucket,
            num_tokens=bucket,
            total_token_num=bucket * runner.model.max_model_len,
            max_len=runner.model.max_model_len,
            max_new_tokens=1,
            is_prefill=False,
        )
        input_ids = runner.inputs.input_ids[:bucket]
        logits = runner.forward(input_ids, state)  # compiles and allocates what capture must not
        for greedy_only in (True, False):
            runner.sample(logits, self._outputs, greedy_only=greedy_only)
        torch.cuda.current_stream().synchronize()
        model = torch.cuda.CUDAGraph()
        with torch.cuda.graph(model, pool=pool, stream=torch.cuda.current_stream()):
            logits = runner.forward(input_ids, state)
        self._model[bucket] = model
        for greedy_only in (True, False):
            sampler = torch.cuda.CUDAGraph()
            with torch.cuda.graph(sampler, pool=pool, stream=torch.cuda.current_stream()):
                runner.sample(logits, self._outputs, greedy_only=greedy_only)
            self._sampler[bucket, greedy_only] = sampler
