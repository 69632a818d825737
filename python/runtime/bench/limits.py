"""What the device allows: the time in which the bytes of a step can be read and its products computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.basemodel import TpPartBaseModel

# measured: bytes/s of a device copy, read and written; FLOP/s of a large bfloat16 matrix product
DEVICES = {"NVIDIA H200": (4.3e12, 788e12)}


def decode_step_s(model: TpPartBaseModel, batch: int, context: float, device_name: str) -> float | None:
    """Seconds that one decode step of `batch` rows with `context` tokens takes at least; None: device not known.

    Every weight is read once but the embedding's table, of which only the batch's rows are, unless the LM head is the
    same; then the KV cache. Both against the products they feed, whichever takes longer.
    """
    if device_name not in DEVICES:
        return None
    bytes_per_s, flops_per_s = DEVICES[device_name]
    config, weight_bytes = model.config, model.memory.weight_bytes
    if not config.get("tie_word_embeddings"):
        weight_bytes -= config["vocab_size"] * config["hidden_size"] * model.dtype.itemsize
    kv_bytes = batch * context * model.memory.kv_bytes_per_token
    products = 2 * batch * weight_bytes / model.dtype.itemsize
    attention = 4 * batch * context * config["attention_size"] * config["num_hidden_layers"]
    weights_s = max(weight_bytes / bytes_per_s, products / flops_per_s)
    return float(weights_s + max(kv_bytes / bytes_per_s, attention / flops_per_s))


def on_paper(folder: Path) -> TpPartBaseModel:
    """The model of a folder without its weights, in the checkpoint's dtype."""
    from runtime.basemodel import model_class_of

    return model_class_of(folder)(0, 1, folder, 16, device="meta", load_format="dummy")
