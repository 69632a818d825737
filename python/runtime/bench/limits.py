"""What the device allows: the time in which the bytes of a step can be read and its products computed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.basemodel import TpPartBaseModel
    from runtime.bench.scenarios import Offline

# measured: bytes/s of a device copy, read and written; FLOP/s of a large bfloat16 matrix product of random values
DEVICES = {
    "NVIDIA H200": (4.3e12, 788e12),
    "NVIDIA H100 80GB HBM3": (3.0e12, 780e12),
}


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


def prefill_s(model: TpPartBaseModel, input_len: int, device_name: str) -> float | None:
    """Seconds that the products of one prompt take at least: every layer's weights, and causal attention."""
    if device_name not in DEVICES:
        return None
    flops_per_s, config = DEVICES[device_name][1], model.config
    tables = 1 if config.get("tie_word_embeddings") else 2
    layer_weights = model.memory.weight_bytes / model.dtype.itemsize - tables * (
        config["vocab_size"] * config["hidden_size"]
    )
    attention = 2 * input_len**2 * config["attention_size"] * config["num_hidden_layers"]
    return float((2 * input_len * layer_weights + attention) / flops_per_s)


def offline_s(model: TpPartBaseModel, scenario: Offline, device_name: str) -> float | None:
    """Seconds that a closed batch takes at least: every prompt, then decode steps of those that are left.

    None where the device is not known, and where the requests do not all run at once or share a prefix.
    """
    requests = scenario.requests
    if device_name not in DEVICES or len(requests) > 256 or any(one.shared_len for one in requests):
        return None
    total = sum(prefill_s(model, one.input_len, device_name) or 0.0 for one in requests)
    left = sorted(requests, key=lambda one: one.output_len)
    for step in itertools.count(1):  # a prompt's last step samples the first token
        left = [one for one in left if one.output_len > step]
        if not left:
            return total
        context = sum(one.input_len for one in left) / len(left) + step
        total += decode_step_s(model, len(left), context, device_name) or 0.0
    raise AssertionError("unreachable")


def on_paper(folder: Path) -> TpPartBaseModel:
    """The model of a folder without its weights, in the checkpoint's dtype."""
    from runtime.basemodel import model_class_of

    return model_class_of(folder)(0, 1, folder, 16, device="meta", load_format="dummy")
