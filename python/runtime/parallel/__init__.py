"""Tensor-parallel groups."""

from .init import backend_of, init_tp_group
from .tp_group import TpGroup

__all__ = ["TpGroup", "backend_of", "init_tp_group"]
