"""vLLM, through `vllm.LLM` and its engine's `add_request` and `step`, which `LLM.generate` itself is a loop of."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from runtime.bench.engines import RequestTimes, TimedRequest, import_peer, sleep_until, versions_of


class VllmEngine:
    """An `LLM` of vLLM, with its own defaults for whatever is not given. Its device is the platform's."""

    ARGUMENTS: ClassVar = frozenset(
        {
            "block_size",
            "dtype",
            "enable_prefix_caching",
            "enforce_eager",
            "gpu_memory_utilization",
            "kv_cache_memory_bytes",
            "load_format",
            "max_model_len",
            "max_num_batched_tokens",
            "max_num_seqs",
            "seed",
            "tensor_parallel_size",
        }
    )

    def __init__(self, model_dir: Path, arguments: Mapping[str, Any]) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a measurement connects to nothing
        self._vllm = import_peer("vllm", "vllm")
        self.model_dir = model_dir
        self.tensor_parallel_size: int = arguments.get("tensor_parallel_size", 1)
        weights = "dummy" if arguments.get("load_format") == "dummy" else "safetensors"  # never files with code
        self._llm = self._vllm.LLM(
            str(model_dir),
            skip_tokenizer_init=True,
            disable_log_stats=False,  # statistics hold the time of the first token
            **{**arguments, "load_format": weights},
        )
        self._engine = self._llm.llm_engine
        self.dtype = str(self._engine.model_config.dtype).removeprefix("torch.")
        self.device = _device()
        self._num_requests = 0

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("vllm")

    @property
    def settings(self) -> dict[str, int]:
        return {}

    def run(
        self, requests: Sequence[TimedRequest], temperature: float = 0.0, *, every_token: bool = False
    ) -> list[RequestTimes]:
        """Without `every_token` outputs come once, at their end, as `LLM.generate` asks for them."""
        self._llm.reset_prefix_cache()
        params = [self._params(one, temperature, every_token) for one in requests]
        run = _Run(self._engine, requests, self._num_requests)
        self._num_requests += len(requests)
        for i in run.due():
            self._engine.add_request(run.ids[i], {"prompt_token_ids": requests[i].prompt_token_ids}, params[i])
        return [run.times(i, every_token) for i in range(len(requests))]

    def close(self) -> None:
        """Its engine process ends with the object."""
        del self._engine, self._llm

    def _params(self, request: TimedRequest, temperature: float, every_token: bool) -> Any:
        kinds = self._vllm.sampling_params.RequestOutputKind
        return self._vllm.SamplingParams(
            temperature=temperature,
            max_tokens=request.output_len,
            ignore_eos=True,
            detokenize=False,
            output_kind=kinds.DELTA if every_token else kinds.FINAL_ONLY,
        )


class _Run:
    """Requests on their way through an engine, and when what came of each."""

    def __init__(self, engine: Any, requests: Sequence[TimedRequest], num_before: int) -> None:
        self.ids = [f"bench-{num_before + i}" for i in range(len(requests))]
        self._engine = engine
        self._requests = requests
        self._index = {request_id: i for i, request_id in enumerate(self.ids)}
        self._sent_s = [0.0] * len(requests)
        self._last_s = [0.0] * len(requests)
        self._first_s: list[float | None] = [None] * len(requests)
        self._token_s: list[list[float]] = [[] for _ in requests]
        self._start = time.perf_counter()

    def due(self) -> Iterator[int]:
        """Each request, when it is to be sent; steps in between and until all have ended."""
        for i, one in enumerate(self._requests):
            due = self._start + (one.arrival_s or 0.0)
            while time.perf_counter() < due and self._engine.has_unfinished_requests():
                self._step()
            sleep_until(due)
            self._sent_s[i] = time.perf_counter() - self._start
            yield i
        while self._engine.has_unfinished_requests():
            self._step()

    def times(self, i: int, every_token: bool) -> RequestTimes:
        arrival_s, sent_s, token_s = self._requests[i].arrival_s, self._sent_s[i], self._token_s[i]
        first_s = token_s[0] if every_token else self._first_s[i]
        due_s = sent_s if arrival_s is None else arrival_s
        return RequestTimes(sent_s, due_s, first_s, self._last_s[i], token_s if every_token else ())

    def _step(self) -> None:
        outputs = self._engine.step()
        now = time.perf_counter() - self._start
        for output in outputs:
            i = self._index[output.request_id]
            self._token_s[i].extend([now] * len(output.outputs[0].token_ids))
            self._last_s[i] = now
            latency = getattr(output.metrics, "first_token_latency", None)  # seconds from `add_request`
            self._first_s[i] = self._sent_s[i] + latency if latency else None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
