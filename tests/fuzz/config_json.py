"""A config.json is refused in words, or a model can be planned from it: sizes in bounds, finite rotary tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mutate
import torch

from runtime.basemodel import load_model
from runtime.basemodel.rotary import rotary_tables
from runtime.errors import ConfigError, ModelFormatError
from runtime.loader.model_config import LIMITS

LLAMA = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "float32",
}
BLOOM = {"vocab_size": 11, "hidden_size": 16, "n_layer": 1, "n_head": 4, "layer_norm_epsilon": 1e-5}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32, "mscale": 1.0},
    {
        "rope_type": "longrope",
        "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 3.0],
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]


def make(folder: Path) -> Callable[[Random], None]:
    path = folder / "config.json"

    def case(rng: Random) -> None:
        path.write_bytes(draw(rng))
        try:
            model = load_model(folder, max_total_token_num=64, device="meta", load_format="dummy")
        except (ModelFormatError, ConfigError) as error:
            assert str(folder) not in str(error) and len(str(error)) < 10_000
            return
        check(model)

    return case


def check(model: Any) -> None:
    config = model.config
    assert all(1 <= config[name] <= limit for name, limit in LIMITS.items() if config.get(name) is not None)
    assert config["attention_size"] == config["num_attention_heads"] * config["head_dim"]
    assert model.memory.weight_bytes > 0 and model.max_model_len >= 1
    if hasattr(model, "rope"):
        tables = rotary_tables(model.rope, min(model.max_model_len, 64), torch.device("cpu"))
        assert all(table.isfinite().all() for table in tables)


def draw(rng: Random) -> bytes:
    """A family's config with a few entries damaged, or its text."""
    family = rng.choice(("llama", "qwen2", "qwen3", "bloom"))
    config: dict[str, Any] = {"model_type": family, **(BLOOM if family == "bloom" else LLAMA)}
    if family != "bloom":
        rope = {name: list(x) if isinstance(x, list) else x for name, x in rng.choice(ROPES).items()}
        config |= rng.choice(({"rope_parameters": {"rope_theta": 1e4, **rope}}, {"rope_scaling": rope}))
    for _ in range(rng.randrange(4)):
        config = mutate.json_of(config, rng)
        if not isinstance(config, dict):
            break
    text = mutate.dump(config)
    return mutate.bytes_of(text, rng) if rng.random() < 0.3 else text
