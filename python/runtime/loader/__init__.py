"""Reads a model folder: config.json and safetensors, checked before anything is allocated. Knows no model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .dummy import DummyCheckpoint
    from .model_config import ModelConfig, read_config
    from .model_folder import check_model_folder
    from .safetensors_header import TensorInfo, read_header
    from .safetensors_writer import TensorToWrite, write_safetensors
    from .torch_checkpoint import TorchCheckpoint, open_weights

__all__ = [
    "Checkpoint",
    "DummyCheckpoint",
    "ModelConfig",
    "TensorInfo",
    "TensorToWrite",
    "TorchCheckpoint",
    "check_model_folder",
    "open_weights",
    "read_config",
    "read_header",
    "write_safetensors",
]

_HOMES = {
    "Checkpoint": "checkpoint",
    "DummyCheckpoint": "dummy",
    "ModelConfig": "model_config",
    "TensorInfo": "safetensors_header",
    "TensorToWrite": "safetensors_writer",
    "TorchCheckpoint": "torch_checkpoint",
    "check_model_folder": "model_folder",
    "open_weights": "torch_checkpoint",
    "read_config": "model_config",
    "read_header": "safetensors_header",
    "write_safetensors": "safetensors_writer",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: a tokenizer is read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
