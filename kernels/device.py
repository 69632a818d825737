"""What a launch asks of the device that a tensor lives on."""

from __future__ import annotations

import functools
import os

import torch

from . import launch

# Programs of a persistent grid in Triton's interpreter, which runs them one after the other.
_INTERPRETER_NUM_SMS = 3


@functools.cache
def _properties(index: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count


def _name_and_sms(device: torch.device) -> tuple[str, int]:
    if device.type != "cuda":
        return "cpu", _INTERPRETER_NUM_SMS
    return _properties(torch.cuda.current_device() if device.index is None else device.index)


def device_name(device: torch.device) -> str:
    """The name that tile configurations are kept under, such as `NVIDIA H200`."""
    return _name_and_sms(device)[0]


def num_sms(device: torch.device) -> int:
    """Multiprocessors of the device: the unit of a persistent grid."""
    return _name_and_sms(device)[1]


def supports_tma(device: torch.device) -> bool:
    """Bulk tensor copies through descriptors; the interpreter has them too."""
    return launch.capability(device)[0] >= 9 or os.environ.get("TRITON_INTERPRET") == "1"
