"""The model contract: a family is declared weights, a few hooks of the templates and a model class."""

from .base_model import ModelMemory, TpPartBaseModel
from .infer import (
    BaseLayerInfer,
    PostLayerInfer,
    PostLayerInferTpl,
    PreLayerInfer,
    PreLayerInferTpl,
    TransformerLayerInfer,
    TransformerLayerInferTpl,
)
from .infer_state import InferStateInfo
from .mem_manager import MemManager
from .registry import (
    GroupOfShapes,
    known_model_types,
    load_model,
    model_class,
    model_class_of,
    needed_tensors,
    register_model,
    tp_sizes,
)
from .token_parts import first_part_tokens
from .weights import (
    BaseLayerWeight,
    ColumnParallel,
    LayerNorm,
    MergedColumnParallel,
    ParallelLMHead,
    Placement,
    PreAndPostLayerWeight,
    QKVParallel,
    Replicated,
    RMSNorm,
    RowParallel,
    TransformerLayerWeight,
    VocabParallelEmbedding,
)

__all__ = [
    "BaseLayerInfer",
    "BaseLayerWeight",
    "ColumnParallel",
    "GroupOfShapes",
    "InferStateInfo",
    "LayerNorm",
    "MemManager",
    "MergedColumnParallel",
    "ModelMemory",
    "ParallelLMHead",
    "Placement",
    "PostLayerInfer",
    "PostLayerInferTpl",
    "PreAndPostLayerWeight",
    "PreLayerInfer",
    "PreLayerInferTpl",
    "QKVParallel",
    "RMSNorm",
    "Replicated",
    "RowParallel",
    "TpPartBaseModel",
    "TransformerLayerInfer",
    "TransformerLayerInferTpl",
    "TransformerLayerWeight",
    "VocabParallelEmbedding",
    "first_part_tokens",
    "known_model_types",
    "load_model",
    "model_class",
    "model_class_of",
    "needed_tensors",
    "register_model",
    "tp_sizes",
]
