"""A large-language-model runtime: models in Python, kernels in Triton, the scheduler in C++."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime._core import __version__
    from runtime.engine import RequestHandle
    from runtime.llm import LLM
    from runtime.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
    from runtime.sampling_params import SamplingParams
    from runtime.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestHandle",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "__version__": "runtime._core",
    "LLM": "runtime.llm",
    "CompletionOutput": "runtime.outputs",
    "Logprob": "runtime.outputs",
    "RequestHandle": "runtime.engine",
    "RequestMetrics": "runtime.outputs",
    "RequestOutput": "runtime.outputs",
    "SamplingParams": "runtime.sampling_params",
    "StreamChunk": "runtime.outputs",
    "StructuredOutputsParams": "runtime.structured_outputs",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `import runtime` must not load torch, and kernels run where the C++ core is not built."""
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
