"""How a rank joins its group."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from .._core import Communicator, load_nccl
from ..errors import ConfigError
from .communicator_group import CommunicatorGroup
from .tp_group import TpGroup

BACKENDS = {"cpu": "shm", "cuda": "nccl"}


def backend_of(device: torch.device | str) -> str:
    """Name of the backend, as `_core.Communicator.unique_id` takes it, of ranks on such a device."""
    kind = torch.device(device).type
    if kind not in BACKENDS:
        raise ConfigError(f"device={kind!r} has no collectives; possible: {', '.join(BACKENDS)}")
    return BACKENDS[kind]


def find_nccl() -> tuple[str, int]:
    """Path and version (22809 is 2.28.9) of the NCCL that this process uses, the one of its Python packages included.

    Raises:
        ConfigError: there is none; all that was searched.
    """
    nvidia = importlib.util.find_spec("nvidia")
    places = (nvidia and nvidia.submodule_search_locations) or []
    return load_nccl(folders=[str(Path(place, "nccl", "lib")) for place in places])


def make_unique_id(device: torch.device | str) -> bytes:
    """Names a group to be, on rank 0; the other ranks get it from whoever starts them, and nobody else does."""
    backend = backend_of(device)
    if backend == "nccl":
        find_nccl()
    return Communicator.unique_id(backend)


def init_tp_group(
    unique_id: bytes,
    rank: int,
    world_size: int,
    device: torch.device | str,
    timeout_s: float = 60.0,
    *,
    deterministic: bool = False,
    overlap: str = "none",
) -> TpGroup:
    """Joins the group that `make_unique_id` named on rank 0; returns when all ranks have.

    Args:
        unique_id: the same on all ranks; of no use with one rank.
        rank, world_size: this rank and the number of ranks, one process each, all on this host.
        device: where this rank's tensors are, "cpu" or one GPU for each rank; with an index it becomes this thread's
            current device, which kernels are launched on.
        timeout_s: how long a rank waits for the others, here and at barriers, and on a CPU in every collective.
        deterministic: sums are added in rank order in float32 at every size.
        overlap: how sums go on beside the computation, see `CommunicatorGroup`.

    Raises:
        ConfigError: an argument that cannot work, or NCCL is missing or of another version than on rank 0.
        CapacityError: /dev/shm is too small.
        CommunicatorError: a rank died or did not come in time.
    """
    if world_size == 1:
        return TpGroup()
    device = torch.device(device)
    named = unique_id.partition(b":")[0].decode(errors="replace")
    if named != backend_of(device):
        raise ConfigError(f"unique_id is one of backend {named!r}; ranks on {device} need {backend_of(device)!r}")
    if device.type == "cuda":
        find_nccl()
        if device.index is not None:
            torch.cuda.set_device(device)
    communicator = Communicator(unique_id, rank, world_size, timeout_s=timeout_s)
    return CommunicatorGroup(communicator, device, timeout_s, deterministic=deterministic, overlap=overlap)
