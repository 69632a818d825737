"""config.json: one name for every quantity, every number bounded before anything is allocated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, shorten
from .model_folder import check_model_folder, read_json

ModelConfig = dict[str, Any]

# Our name -> other names in use. The first one present wins.
SYNONYMS = {
    "hidden_size": ("n_embed", "n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "num_attention_heads": ("n_head", "num_heads"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "max_position_embeddings": ("seq_length", "n_positions", "max_seq_len"),
    "norm_eps": ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
    "rope_theta": ("rotary_emb_base",),
    "partial_rotary_factor": ("rotary_pct",),
    "dtype": ("torch_dtype",),
}
# Largest value of each integer; all are at least 1.
LIMITS = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**12,
    "num_hidden_layers": 2**12,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
}
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
REQUIRED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def read_config(model_dir: str | Path, defaults: Mapping[str, Any] | None = None) -> ModelConfig:
    """config.json of a folder under our names.

    Adds num_key_value_heads, head_dim and attention_size (heads * head_dim) where they follow from the rest. Other
    entries stay as they are.

    Args:
        model_dir: the folder.
        defaults: what the family means by an entry that is absent or null.

    Raises:
        ModelNotFoundError, ModelFormatError: the latter with everything that is wrong.
    """
    config = read_json(check_model_folder(model_dir), "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelFormatError("config.json has no model_type")
    _rename(config)
    for name, value in (defaults or {}).items():
        if config.get(name) is None:
            config[name] = value
    problems = _value_problems(config) or _derive(config)
    if problems:
        raise ModelFormatError([f"config.json: {problem}" for problem in problems])
    return config


def _rename(config: ModelConfig) -> None:
    for name, others in SYNONYMS.items():
        for other in others:
            if config.get(name) is None and config.get(other) is not None:
                config[name] = config[other]


def _value_problems(config: ModelConfig) -> list[str]:
    problems = [f"{name} is missing" for name in REQUIRED if config.get(name) is None]
    for name, limit in LIMITS.items():
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            problems.append(f"{name}={shorten(value)}: an integer from 1 to {limit} is needed")
    eps = config.get("norm_eps", 0)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 <= eps <= 1:
        problems.append(f"norm_eps={shorten(eps)}: a number from 0 to 1 is needed")
    for name in FLAGS:
        if config.get(name) not in (None, True, False):
            problems.append(f"{name}={shorten(config[name])}: true or false is needed")
    return problems


def _derive(config: ModelConfig) -> list[str]:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    problems = []
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    if heads % config["num_key_value_heads"]:
        problems.append(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={config['num_key_value_heads']}"
        )
    if config.get("head_dim") is None:
        if hidden % heads:
            return [*problems, f"hidden_size={hidden} is not a multiple of num_attention_heads={heads}"]
        config["head_dim"] = hidden // heads
    config["attention_size"] = heads * config["head_dim"]
    if config["attention_size"] > LIMITS["hidden_size"]:
        problems.append(
            f"num_attention_heads={heads} times head_dim={config['head_dim']} passes {LIMITS['hidden_size']}"
        )
    return problems
