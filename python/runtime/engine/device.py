"""The device that a model runs on, real or stated: its memory, and whether it can run the model at all."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from runtime.errors import CapacityError, ConfigError, DeviceNotFoundError, ModelFormatError, did_you_mean
from runtime.kernels.attention_shapes import HEAD_DIMS
from runtime.log import get_logger

if TYPE_CHECKING:
    from runtime.basemodel import TpPartBaseModel

logger = get_logger(__name__)

GIB = 1 << 30
MIN_CAPABILITY = (8, 0)

# of a process that has used the device: context, modules of torch and cuBLAS. An estimate for devices that are stated;
# on a real one it is measured.
CONTEXT_BYTES = 512 << 20


@dataclass(frozen=True)
class Device:
    """What a memory plan asks of a device.

    Args:
        kind: "cpu" or "cuda".
        used_bytes: of `memory_bytes`, before the engine allocates anything: the CUDA context and other processes.
        num_sms: multiprocessors; capability: (9, 0) for sm_90. CUDA only.
    """

    kind: str
    name: str
    memory_bytes: int
    used_bytes: int = 0
    num_sms: int = 0
    capability: tuple[int, int] = (0, 0)


# name: (GiB as torch reports them, multiprocessors, compute capability)
KNOWN_DEVICES: dict[str, tuple[float, int, tuple[int, int]]] = {
    "NVIDIA A10": (22.1, 72, (8, 6)),
    "NVIDIA A100-SXM4-40GB": (39.4, 108, (8, 0)),
    "NVIDIA A100-SXM4-80GB": (79.2, 108, (8, 0)),
    "NVIDIA B200": (178.4, 148, (10, 0)),
    "NVIDIA GeForce RTX 4090": (23.6, 128, (8, 9)),
    "NVIDIA H100 80GB HBM3": (79.1, 132, (9, 0)),
    "NVIDIA H200": (139.8, 132, (9, 0)),
    "NVIDIA L4": (22.0, 58, (8, 9)),
    "NVIDIA L40S": (44.4, 142, (8, 9)),
}


def stated_device(name: str | None, memory_bytes: int | None) -> Device:
    """A CUDA device that need not be here: a known one, or one of so much memory, or both; else like an H200."""
    if name is not None and name not in KNOWN_DEVICES and memory_bytes is None:
        raise ConfigError(
            f"device_name={name!r} is not a known device{did_you_mean(name, KNOWN_DEVICES)}",
            hint=f"known: {', '.join(KNOWN_DEVICES)}; device_memory_bytes describes any other",
        )
    gib, num_sms, capability = KNOWN_DEVICES.get(name or "", KNOWN_DEVICES["NVIDIA H200"])
    num_bytes = int(gib * GIB) if memory_bytes is None else memory_bytes
    return Device("cuda", name or "a CUDA device", num_bytes, CONTEXT_BYTES, num_sms, capability)


def probe_device(kind: str) -> Device:
    """The device of this machine, as it is now.

    Raises:
        CapacityError: it has no memory left, not even to be asked.
        DeviceNotFoundError: it does not let itself be used.
    """
    if kind == "cpu":
        return Device("cpu", "the CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with making_context():
        free, total = torch.cuda.mem_get_info()
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        "cuda", found.name, total, total - free, found.multi_processor_count, torch.cuda.get_device_capability()
    )


def resolve_device(wanted: str) -> str:
    """ "cpu" or "cuda" for the `device` argument; DeviceNotFoundError where CUDA is asked for and cannot be used."""
    if wanted == "cpu":
        return "cpu"
    with warnings.catch_warnings():  # torch warns with a paragraph; `why_no_cuda` is its sentence
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if available:
        return "cuda"
    reason, fix = why_no_cuda()
    if wanted == "cuda":
        raise DeviceNotFoundError(
            f"device='cuda': {reason}",
            hint="; ".join(filter(None, (fix, "device='cpu' works; `runtime doctor` says more"))),
        )
    if fix:
        logger.warning("running on the CPU: %s (%s)", reason, fix)
    return "cpu"


def why_no_cuda() -> tuple[str, str]:
    """Why torch sees no CUDA device, and what would help; the latter is empty where a machine simply has none."""
    built_for = torch.version.cuda
    if built_for is None:
        return f"torch sees no CUDA device: torch {torch.__version__} is built without CUDA", ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return _in_one_sentence(str(error), built_for)
    return "torch sees no CUDA device", ""


def _in_one_sentence(message: str, built_for: str) -> tuple[str, str]:
    old = re.search(r"driver on your system is too old \(found version (\d+)\)", message)
    if old:
        found = int(old.group(1))
        supports = f"{found // 1000}.{found % 1000 // 10}"
        reason = f"the NVIDIA driver supports CUDA {supports}, and torch {torch.__version__} needs CUDA {built_for}"
        return reason, f"update the driver, or install a torch built for CUDA {supports} or older"
    if "no NVIDIA driver" in message:
        return "torch sees no CUDA device: there is no NVIDIA driver", ""
    return f"torch sees no CUDA device: {message.splitlines()[0].rstrip('.')}", "`nvidia-smi` shows the driver's state"


@contextmanager
def making_context() -> Iterator[None]:
    """Around the first call to the device, which makes the CUDA context.

    Raises:
        CapacityError: the device has no memory left for one.
        DeviceNotFoundError: it does not let itself be used.
    """
    try:
        yield
    except RuntimeError as error:
        raise _no_context(error) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that a device has no memory left: torch's allocator, or what allocates past it."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("CUDA error: out of memory", "[CUDA]: out of memory", "STATUS_ALLOC_FAILED")
    )


def _no_context(error: RuntimeError) -> CapacityError | DeviceNotFoundError:
    if is_out_of_memory(error):
        return CapacityError(
            f"other processes hold the memory of the device: the {CONTEXT_BYTES / GIB:.2f} GiB of a CUDA context are "
            "not free",
            hint="`nvidia-smi` shows who; CUDA_VISIBLE_DEVICES chooses another GPU",
        )
    return DeviceNotFoundError(
        f"device='cuda': {str(error).splitlines()[0].rstrip('.')}",
        hint="`nvidia-smi` shows the device's state; device='cpu' works",
    )


def check_device(model: TpPartBaseModel, device: Device) -> None:
    """Refuses what no kernel serves.

    Raises:
        DeviceNotFoundError: the device is too old.
        ModelFormatError: the model's head dimension has no kernel.
    """
    if device.kind != "cuda":
        return
    if device.capability < MIN_CAPABILITY:
        raise DeviceNotFoundError(
            f"{device.name} has compute capability {_dotted(device.capability)} (sm_{_joined(device.capability)}); "
            f"{_dotted(MIN_CAPABILITY)} (sm_{_joined(MIN_CAPABILITY)}) and newer are supported",
            hint="device='cpu' works",
        )
    head_dim = model.config["head_dim"]
    if head_dim not in HEAD_DIMS:
        raise ModelFormatError(
            f"config.json: head_dim={head_dim} is not supported on CUDA; supported: {', '.join(map(str, HEAD_DIMS))}",
            hint="device='cpu' works",
        )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _joined(capability: tuple[int, int]) -> str:
    return "".join(map(str, capability))
