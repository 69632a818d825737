"""What the device allows: the time in which the bytes of a step can be read and its products computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import _core

if TYPE_CHECKING:
    from runtime.bench.scenarios import Offline

DEVICES = _core.known_devices()  # by the name that the driver gives


@dataclass(frozen=True)
class ModelOnPaper:
    """A model's sizes; `value_bytes` of each parameter and each value in the KV cache."""

    shape: _core.ModelShape
    value_bytes: int

    def on(self, device_name: str) -> _core.Roofline | None:
        """Its limits on one device; None: device not known."""
        if device_name not in DEVICES:
            return None
        size = self.value_bytes
        return _core.Roofline(self.shape, DEVICES[device_name], weight_bytes=size, kv_bytes=size)


def decode_step_s(model: ModelOnPaper, batch: int, context: float, device_name: str) -> float | None:
    """Seconds that one decode step of `batch` rows with `context` tokens takes at least; None: device not known.

    Every weight is read once but the embedding's table, of which only the batch's rows are, unless the LM head is the
    same; then the KV cache. Both against the products they feed, whichever takes longer.
    """
    limits = model.on(device_name)
    return None if limits is None else limits.decode_s(batch, context)


def offline_s(model: ModelOnPaper, scenario: Offline, device_name: str) -> float | None:
    """Seconds that a closed batch takes at least: every prompt, then decode steps of those that are left.

    None where the device is not known, and where the requests do not all run at once or share a prefix.
    """
    requests, limits = scenario.requests, model.on(device_name)
    if limits is None or len(requests) > 256 or any(one.shared_len for one in requests):
        return None
    return limits.offline_s([(one.input_len, one.output_len) for one in requests])


def on_paper(folder: Path) -> ModelOnPaper:
    """The model of a folder in the checkpoint's dtype; no weight is read."""
    from runtime.basemodel import model_class_of
    from runtime.basemodel.base_model import DTYPES
    from runtime.loader.model_config import read_config

    config = read_config(folder, model_class_of(folder).config_defaults)
    dtype = DTYPES[str(config.get("dtype") or "float32").removeprefix("torch.")]
    return ModelOnPaper(_core.ModelShape.from_config(json.dumps(config)), dtype.itemsize)
