"""Rotary tables agree with transformers' for every way of stretching, partial rotation included."""

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from runtime.basemodel.rotary import longest_context, rope_parameters, rotary_tables
from runtime.errors import ModelFormatError

TRAINED_LEN, HEAD_DIM = 64, 16
ROPES = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.3},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
    {"rope_type": "longrope", "original_max_position_embeddings": 32, "short_factor": [1.1], "long_factor": [2.1]},
    {"rope_type": "longrope", "short_factor": [1.1], "long_factor": [2.1], "factor": 8.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
]


def config_of(rope):
    return {"head_dim": HEAD_DIM, "max_position_embeddings": TRAINED_LEN, "rope_parameters": rope}


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("max_model_len", [20, 64, 150])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_tables_equal_transformers(rope, max_model_len, partial):
    num_pairs = int(HEAD_DIM * partial) // 2
    rope = {"original_max_position_embeddings": TRAINED_LEN, "rope_theta": 500.0} | rope
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = [rope[name][0] + i / 4 for i in range(num_pairs)]
    rope["partial_rotary_factor"] = partial
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=TRAINED_LEN, rope_parameters=dict(rope)
    )
    inv_freq, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"), max_model_len)
    angles = torch.outer(torch.arange(max_model_len).float(), inv_freq)
    cos, sin = rotary_tables(rope_parameters(config_of(rope)), max_model_len, torch.device("cpu"))
    assert cos.shape == (max_model_len, num_pairs)
    torch.testing.assert_close(cos, angles.cos() * scale, rtol=0, atol=2e-5)
    torch.testing.assert_close(sin, angles.sin() * scale, rtol=0, atol=2e-5)


def test_old_and_new_entries_mean_the_same():
    new = config_of({"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0, "partial_rotary_factor": 0.5})
    old = {
        "head_dim": HEAD_DIM,
        "max_position_embeddings": TRAINED_LEN,
        "rope_theta": 123.0,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    device = torch.device("cpu")
    tables = [rotary_tables(rope_parameters(config), 9, device) for config in (new, old)]
    assert all(torch.equal(a, b) for a, b in zip(*tables))
    none = rope_parameters({"head_dim": HEAD_DIM, "max_position_embeddings": 8, "rope_scaling": None})
    assert none["rope_type"] == "default" and none["rope_theta"] == 10000.0


def test_longest_context():
    assert longest_context(rope_parameters(config_of({"rope_type": "default"}))) == 64
    assert longest_context(rope_parameters(config_of({"rope_type": "dynamic", "factor": 4.0}))) == 256
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert longest_context(rope_parameters(config_of(yarn))) == 128


@pytest.mark.parametrize(
    "rope, words",
    [
        ({"rope_type": "spiral"}, "rope_type='spiral' is unknown; known: default, linear"),
        ({"rope_type": "linear"}, "rope_type=linear needs factor"),
        ({"rope_type": "linear", "factor": -1}, "factor=-1: a number from 1e-12 to 1e+12 is needed"),
        ({"rope_type": "yarn", "rope_theta": 1}, "rope_theta=1: more than 1 is needed"),
        ({"rope_type": ["linear"]}, "rope_type=['linear'] is unknown"),
        ({"rope_type": "default", "rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_type": "default", "partial_rotary_factor": 2.0}, "partial_rotary_factor=2.0: at most 1"),
        ({"rope_type": "default", "partial_rotary_factor": 0.2}, "rotary part of head_dim, 3, is not even"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.125}, "more than 2 rotary dimensions"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
            "short_factor needs 8 numbers from 1e-12 to 1e+12",
        ),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "high_freq_factor=4.0 must be more than low_freq_factor=4.0",
        ),
        ("linear", "rope_parameters='linear' is not an object"),
    ],
)
def test_refused(rope, words):
    with pytest.raises(ModelFormatError) as refused:
        rope_parameters(config_of(rope))
    assert words in str(refused.value)
