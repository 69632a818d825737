"""A stated device and the plan of an 8B on it."""

from pathlib import Path

from runtime.config import EngineConfig
from runtime.engine.device import GIB, Device
from runtime.engine.memory_plan import plan_memory

CONFIGS = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs"
LLAMA_8B = {"model": str(CONFIGS / "llama-3.1-8b"), "load_format": "dummy"}


def h200(**changes):
    fields = {"kind": "cuda", "name": "NVIDIA H200", "memory_bytes": 140 * GIB, "used_bytes": GIB // 2}
    return Device(**{**fields, "num_sms": 132, "capability": (9, 0), **changes})


def plan(device, **arguments):
    return plan_memory(EngineConfig(**{**LLAMA_8B, **arguments}), device)
