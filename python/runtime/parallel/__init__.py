"""Tensor-parallel groups."""

from .init import backend_of, find_nccl, init_tp_group, make_unique_id
from .tp_group import PendingSum, TpGroup

__all__ = ["PendingSum", "TpGroup", "backend_of", "find_nccl", "init_tp_group", "make_unique_id"]
