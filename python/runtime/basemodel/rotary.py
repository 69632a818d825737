"""Rotary position embedding (Su et al., 2021) and the ways its frequencies are stretched to longer contexts.

Every way returns inverse frequencies, float32 [rotary_dim / 2], and the factor that cosines and sines carry. Sources:
linear, Chen et al. 2023; dynamic, NTK-aware scaling as in Hugging Face's configs; yarn, Peng et al. 2023; longrope,
Ding et al. 2024; llama3, Llama 3.1's released code.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelFormatError, shorten
from ..loader import ModelConfig

RopeParameters = dict[str, Any]
Frequencies = tuple[Tensor, float]


def rope_parameters(config: ModelConfig) -> RopeParameters:
    """The rotary entries of a config in one form, whether it has `rope_parameters` or `rope_theta` and `rope_scaling`.

    Holds rope_type, rope_theta, rotary_dim, max_position_embeddings, original_max_position_embeddings and what the type
    adds. Raises ModelFormatError.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelFormatError(f"config.json: rope_parameters={shorten(given)} is not an object")
    found = dict(given)
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    for name, default in (("rope_theta", 10000.0), ("partial_rotary_factor", 1.0)):
        if found.get(name) is None:
            found[name] = config.get(name) if config.get(name) is not None else default
    trained = config.get("max_position_embeddings")
    if trained is None:
        raise ModelFormatError("config.json: max_position_embeddings is missing")
    original = (
        found.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or trained
    )
    found |= {"max_position_embeddings": trained, "original_max_position_embeddings": original}
    problems = _entry_problems(found) or _dimension_problems(found, config["head_dim"])
    if problems:
        raise ModelFormatError([f"config.json: {problem}" for problem in problems])
    return found


# What a type needs beyond rope_theta.
_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "longrope": ("long_factor", "short_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_POSITIVE = (
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
_SMALLEST, _LARGEST = 1e-12, 1e12  # so that float32 holds every frequency


def _entry_problems(rope: RopeParameters) -> list[str]:
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _NEEDS:
        return [f"rope_type={shorten(kind)} is unknown; known: {', '.join(_NEEDS)}"]
    problems = [f"rope_type={kind} needs {name}" for name in _NEEDS[kind] if rope.get(name) is None]
    problems += [
        f"{name}={shorten(rope[name])}: a number from {_SMALLEST:g} to {_LARGEST:g} is needed"
        for name in _POSITIVE
        if rope.get(name) is not None and not _is_positive(rope[name])
    ]
    for name in ("rope_theta", "original_max_position_embeddings"):
        if not problems and rope[name] <= 1:
            problems.append(f"{name}={rope[name]}: more than 1 is needed")
    if not problems and rope["partial_rotary_factor"] > 1:
        problems.append(f"partial_rotary_factor={rope['partial_rotary_factor']}: at most 1")
    if not problems and kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        problems.append(
            f"high_freq_factor={rope['high_freq_factor']} must be more than low_freq_factor={rope['low_freq_factor']}"
        )
    return problems


def _dimension_problems(rope: RopeParameters, head_dim: int) -> list[str]:
    """Sets rotary_dim, and says what does not fit it."""
    rope["rotary_dim"] = dim = int(head_dim * rope["partial_rotary_factor"])
    if dim % 2 or dim < 2:
        return [f"the rotary part of head_dim, {dim}, is not even"]
    if rope["rope_type"] == "dynamic" and dim == 2:
        return ["rope_type=dynamic needs more than 2 rotary dimensions"]
    factors = ("short_factor", "long_factor") if rope["rope_type"] == "longrope" else ()
    needed = f"{dim // 2} numbers from {_SMALLEST:g} to {_LARGEST:g}"
    return [f"{name} needs {needed}" for name in factors if not _are_positive(rope[name], dim // 2)]


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _SMALLEST <= value <= _LARGEST


def _are_positive(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_positive, values))


def longest_context(rope: RopeParameters) -> int:
    """Tokens that the stretched positions are meant for."""
    trained, original = rope["max_position_embeddings"], rope["original_max_position_embeddings"]
    if rope["rope_type"] in ("linear", "dynamic"):
        return int(trained * rope["factor"])
    if rope["rope_type"] == "yarn":
        return int(max(trained, original * _yarn_factor(rope)))
    return int(trained)


def rotary_tables(rope: RopeParameters, max_model_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [max_model_len, rotary_dim / 2], of positions 0 .. max_model_len - 1.

    `dynamic` and `longrope` choose their frequencies here, once, from max_model_len: a token's keys then never depend
    on how long its request became later.
    """
    inv_freq, scale = _FREQUENCIES[rope["rope_type"]](rope, max_model_len)
    if device.type == "meta":
        cos, sin = torch.empty(2, max_model_len, len(inv_freq), dtype=torch.float32, device=device)
        return cos, sin
    # on the CPU for every device, so that the bits are the same
    angles = torch.outer(torch.arange(max_model_len, dtype=torch.float32), inv_freq)
    return (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)


def _base_frequencies(rope: RopeParameters, theta: float | None = None) -> Tensor:
    dim = rope["rotary_dim"]
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return torch.reciprocal((rope["rope_theta"] if theta is None else theta) ** exponents)


def _default(rope: RopeParameters, max_model_len: int) -> Frequencies:
    return _base_frequencies(rope), 1.0


def _linear(rope: RopeParameters, max_model_len: int) -> Frequencies:
    return _base_frequencies(rope) / rope["factor"], 1.0


def _dynamic(rope: RopeParameters, max_model_len: int) -> Frequencies:
    dim, factor, trained = rope["rotary_dim"], rope["factor"], rope["max_position_embeddings"]
    stretch = factor * max(max_model_len, trained) / trained - (factor - 1)
    return _base_frequencies(rope, rope["rope_theta"] * stretch ** (dim / (dim - 2))), 1.0


def _yarn_factor(rope: RopeParameters) -> float:
    return float(rope.get("factor") or rope["max_position_embeddings"] / rope["original_max_position_embeddings"])


def _yarn_scale(rope: RopeParameters) -> float:
    def scale(weight: float) -> float:
        factor = _yarn_factor(rope)
        return float(1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0)

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") is not None and rope.get("mscale_all_dim") is not None:
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def _yarn(rope: RopeParameters, max_model_len: int) -> Frequencies:
    """Slow frequencies interpolated, fast ones kept, with a linear ramp over the dimensions between."""
    dim, original = rope["rotary_dim"], rope["original_max_position_embeddings"]

    def dim_of(num_rotations: float) -> float:
        wavelengths = math.log(original / (num_rotations * 2 * math.pi))
        return float(dim * wavelengths / (2 * math.log(rope["rope_theta"])))

    low, high = dim_of(rope.get("beta_fast") or 32), dim_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    fast = _base_frequencies(rope)
    return fast / _yarn_factor(rope) * (1 - kept) + fast * kept, _yarn_scale(rope)


def _longrope(rope: RopeParameters, max_model_len: int) -> Frequencies:
    trained, original = rope["max_position_embeddings"], rope["original_max_position_embeddings"]
    factors = torch.tensor(rope["long_factor" if max_model_len > original else "short_factor"], dtype=torch.float32)
    factor = rope.get("factor") or trained / original
    scale = rope.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return _base_frequencies(rope) / factors, float(scale)


def _llama3(rope: RopeParameters, max_model_len: int) -> Frequencies:
    """Wavelengths past original / low_freq_factor are divided by the factor, short ones kept, with a ramp between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = _base_frequencies(rope)
    rotations = rope["original_max_position_embeddings"] * kept / (2 * math.pi)
    smooth = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * kept / rope["factor"] + smooth * kept, 1.0


_FREQUENCIES: dict[str, Callable[[RopeParameters, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
