"""Step times that a device cannot beat, from a Hugging Face config.json; the formulas are runtime/roofline.h's."""

from __future__ import annotations

import json
from pathlib import Path

from runtime import _core
from runtime._core import DeviceLimits as Device
from runtime.simulation.step_times import StepTimes

__all__ = ["Device", "kv_tokens", "model_shape", "roofline", "tile_tokens"]

_TILE = _core.StepFeatures.TILE_LEN


def roofline(
    model_dir: str | Path,
    device: Device | None = None,
    *,
    tp: int = 1,
    weight_bytes: float = 2.0,
    kv_bytes: float = 2.0,
    max_num_seqs: int = 256,
) -> StepTimes:
    """Step times of a model at the limit of a device.

    Args:
        model_dir: folder with config.json; no weight is read.
        tp: ranks that share the model.
        weight_bytes, kv_bytes: of one parameter, and of one value in the KV cache.
        max_num_seqs: tokens of a step that the language model's head sees at most.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError
    """
    limits = _limits(model_dir, device, tp, weight_bytes, kv_bytes)
    model = limits.step_times(max_num_seqs)
    return StepTimes(
        buckets=tuple(model.buckets),
        max_graph_rows=model.max_graph_rows,
        decode_tile_s=model.decode_tile_s,
        prefill_tile_s=model.prefill_tile_s,
        host_s=model.host_s,
        source=f"roofline of {Path(model_dir).resolve().name}, tp {tp}",
        kv_tokens=max(limits.kv_tokens, 0),
        kv_bytes_per_token=limits.kv_bytes_per_token,
    )


def kv_tokens(
    model_dir: str | Path,
    device: Device | None = None,
    *,
    tp: int = 1,
    weight_bytes: float = 2.0,
    kv_bytes: float = 2.0,
) -> int:
    """Tokens whose KV fits beside the weights; negative when the weights alone do not fit."""
    return _limits(model_dir, device, tp, weight_bytes, kv_bytes).kv_tokens


def tile_tokens(model_dir: str | Path) -> float:
    """Tokens whose matrix products are as many operations as a tile of prefill attention."""
    shape = model_shape(model_dir)
    return 4 * _TILE * _TILE * shape.heads * shape.head_dim * shape.layers / (2 * shape.active)


def model_shape(model_dir: str | Path) -> _core.ModelShape:
    """Of the config.json of a folder.

    Raises:
        ModelNotFoundError, ModelFormatError
    """
    from runtime.loader.model_config import read_config

    return _core.ModelShape.from_config(json.dumps(read_config(model_dir)))


def _limits(
    model_dir: str | Path, device: Device | None, tp: int, weight_bytes: float, kv_bytes: float
) -> _core.Roofline:
    return _core.Roofline(
        model_shape(model_dir), device or Device(), tp=tp, weight_bytes=weight_bytes, kv_bytes=kv_bytes
    )
