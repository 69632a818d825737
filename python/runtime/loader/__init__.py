"""Reads a model folder: config.json and safetensors, checked before anything is allocated. Knows no model."""

from .checkpoint import Checkpoint
from .dummy import DummyCheckpoint
from .model_config import ModelConfig, read_config
from .model_folder import check_model_folder
from .safetensors_header import TensorInfo, read_header

__all__ = [
    "Checkpoint",
    "DummyCheckpoint",
    "ModelConfig",
    "TensorInfo",
    "check_model_folder",
    "read_config",
    "read_header",
]
