"""Tensor-parallel groups."""

from .tp_group import TpGroup

__all__ = ["TpGroup"]
