"""Step times that a device cannot beat, from a Hugging Face config.json.

A matrix product takes the longer of reading its weights and multiplying; attention, of reading KV and multiplying
(S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", 2009). With `tp` ranks
each holds its share, and two all-reduces a layer join them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import _core
from runtime.errors import ConfigError
from runtime.simulation.step_times import StepTimes

_UNGATED = ("bloom", "gpt2", "opt", "gpt_neox", "falcon")  # two matrices in the feed-forward layer, not three
_MAX_GRAPH_ROWS = 512
_TILE = _core.StepFeatures.TILE_LEN


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one accelerator gives; the defaults are those of an H200 SXM.

    Args:
        bandwidth: of memory, bytes a second.
        flops: dense matrix products, operations a second.
        link, bus_bandwidth: bytes a second between two devices, and of a ring over all of them.
        one_shot_s, two_shot_s, ring_s: latencies of the three ways to all-reduce.
        memory: bytes.
        utilization: share of the memory for weights and KV cache; reserve: bytes of it that neither gets.
        launch_s, host_s: of every step, on top of the roofline.
    """

    bandwidth: float = 4.3e12
    flops: float = 788e12
    link: float = 450e9
    bus_bandwidth: float = 340e9
    one_shot_s: float = 2.8e-6
    two_shot_s: float = 5.0e-6
    ring_s: float = 10e-6
    memory: float = 143771.0 * 2**20
    utilization: float = 0.9
    reserve: float = 2.5e9
    launch_s: float = 0.0
    host_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "flops", "link", "bus_bandwidth", "memory"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("one_shot_s", "two_shot_s", "ring_s", "reserve", "launch_s", "host_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 0")
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"utilization={self.utilization}: must be above 0 and at most 1")

    def all_reduce_s(self, num_bytes: float, tp: int) -> float:
        """Seconds to sum `num_bytes` over `tp` devices, the fastest way."""
        if tp == 1:
            return 0.0
        share = 2 * (tp - 1) / tp * num_bytes
        return min(
            self.one_shot_s + (tp - 1) * num_bytes / self.link,
            self.two_shot_s + share / self.link,
            self.ring_s + share / self.bus_bandwidth,
        )


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer, in parameters where not said otherwise."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dense: int  # of all layers, read in every step
    head: int  # the language model's head
    embedding: int  # besides the head; 0: tied
    moe_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a config as `runtime.loader.read_config` gives it."""
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        matrices = 2 if config["model_type"] in _UNGATED else 3
        inner = config.get("intermediate_size") or 4 * hidden
        experts = _first(config, "num_experts", "n_routed_experts", "num_local_experts")
        dense_layers = _first(config, "first_k_dense_replace") if experts else layers
        expert_inner = config.get("moe_intermediate_size") or inner
        shared = _first(config, "n_shared_experts") * expert_inner + _first(config, "shared_expert_intermediate_size")
        moe_fixed = matrices * hidden * shared + hidden * experts
        attention = hidden * head_dim * 2 * (heads + kv_heads)
        head = config["vocab_size"] * hidden
        return cls(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dense=layers * attention + dense_layers * matrices * hidden * inner + (layers - dense_layers) * moe_fixed,
            head=head,
            embedding=0 if config.get("tie_word_embeddings") else head,
            moe_layers=layers - dense_layers,
            experts=experts,
            experts_per_token=_first(config, "num_experts_per_tok"),
            expert=matrices * hidden * expert_inner,
        )

    @property
    def total(self) -> int:
        return self.dense + self.moe_layers * self.experts * self.expert + self.head + self.embedding

    @property
    def active(self) -> int:
        """That one token is multiplied with, the head left out."""
        return self.dense + self.moe_layers * self.experts_per_token * self.expert

    def read(self, num_tokens: int) -> float:
        """That a step of so many tokens reads: all, but of the experts those that uniform routing hits."""
        if not self.experts:
            return self.dense + self.head
        missed = (1 - self.experts_per_token / self.experts) ** num_tokens
        return self.dense + self.head + self.moe_layers * self.experts * (1 - missed) * self.expert

    def kv_bytes(self, tp: int, bytes_per_value: float) -> float:
        """Of one token, on one rank."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value / min(tp, self.kv_heads)


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
    shape, device = _shape(model_dir), device or Device()
    if tp < 1 or shape.heads % tp:
        raise ConfigError(f"tp={tp}: must divide the model's {shape.heads} heads")
    rate = shape.heads * shape.head_dim * shape.layers / tp / device.flops  # seconds of two operations on each channel
    return StepTimes(
        buckets=tuple(
            (
                tokens,
                device.launch_s,
                max(
                    shape.read(tokens) * weight_bytes / tp / device.bandwidth,
                    2 * (shape.active * tokens + shape.head * min(tokens, max_num_seqs)) / tp / device.flops,
                ),
                (2 * shape.layers + 1) * device.all_reduce_s(tokens * shape.hidden * 2, tp),
            )
            for tokens in _bucket_sizes()
        ),
        max_graph_rows=_MAX_GRAPH_ROWS,
        decode_tile_s=_TILE * max(shape.kv_bytes(tp, kv_bytes) / device.bandwidth, 4 * rate),
        prefill_tile_s=_TILE * _TILE * 4 * rate,
        host_s=device.host_s,
        source=f"roofline of {Path(model_dir).resolve().name}, tp {tp}",
        kv_tokens=max(kv_tokens(model_dir, device, tp=tp, weight_bytes=weight_bytes, kv_bytes=kv_bytes), 0),
        kv_bytes_per_token=shape.kv_bytes(tp, kv_bytes),
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
    shape, device = _shape(model_dir), device or Device()
    free = device.memory * device.utilization - shape.total * weight_bytes / tp - device.reserve
    return int(free // shape.kv_bytes(tp, kv_bytes))


def tile_tokens(model_dir: str | Path) -> float:
    """Tokens whose matrix products are as many operations as a tile of prefill attention."""
    shape = _shape(model_dir)
    return 4 * _TILE * _TILE * shape.heads * shape.head_dim * shape.layers / (2 * shape.active)


def _shape(model_dir: str | Path) -> ModelShape:
    from runtime.loader.model_config import read_config

    return ModelShape.of(read_config(model_dir))


def _bucket_sizes() -> list[int]:
    small = [1, 2, 4, *range(8, 128, 8), *range(128, 512, 16), *range(512, 1024, 64)]
    return small + [1024 << i for i in range(6)]


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 22:
            return value
    return 0
