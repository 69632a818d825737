"""Weights are declared: one class attribute a parameter says its name in the checkpoint and how ranks split it."""

from .layer_weight import BaseLayerWeight, PreAndPostLayerWeight, TransformerLayerWeight, dummy_tensors, verify_load
from .linear import ColumnParallel, MergedColumnParallel, QKVParallel, Replicated, RowParallel
from .norm import LayerNorm, RMSNorm
from .param import Param, Placement, Shard
from .vocab import ParallelLMHead, VocabParallelEmbedding

__all__ = [
    "BaseLayerWeight",
    "ColumnParallel",
    "LayerNorm",
    "MergedColumnParallel",
    "Param",
    "ParallelLMHead",
    "Placement",
    "PreAndPostLayerWeight",
    "QKVParallel",
    "RMSNorm",
    "Replicated",
    "RowParallel",
    "Shard",
    "TransformerLayerWeight",
    "VocabParallelEmbedding",
    "dummy_tensors",
    "verify_load",
]
