"""Model folders that are right, and every way in which one can be wrong."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.basemodel import load_model
from runtime.errors import ConfigError, ModelFormatError, ModelNotFoundError
from runtime.loader import Checkpoint, DummyCheckpoint, read_config

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 11,
    "max_position_embeddings": 32,
}
LAYER = {
    "input_layernorm": (16,),
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "post_attention_layernorm": (16,),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
SHAPES = {
    "model.embed_tokens.weight": (11, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (11, 16),
    **{f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in LAYER.items()},
}


def random_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama."""
    path = tmp_path / "tiny-llama"
    path.mkdir()
    write_config(path)
    save_file(random_tensors(), path / "model.safetensors")
    return path


def write_config(path, **changes):
    (path / "config.json").write_text(json.dumps(CONFIG | changes))


def load(path, **options):
    return load_model(path, **{"max_total_token_num": 64} | options)


def logits(model):
    b_loc, tokens = model.new_b_loc(), torch.tensor([3, 1, 4, 1, 5], dtype=torch.int32)
    model.mem_manager.extend(b_loc, [5])
    return model.forward(1, 5, 5, tokens, b_loc, torch.tensor([0]), torch.tensor([5]), True)


def refusal(error, call, *args, **kwargs):
    with pytest.raises(error) as refused:
        call(*args, **kwargs)
    return str(refused.value)


# What loads


def test_single_sharded_and_prefixless_files_are_the_same_model(folder, tmp_path):
    expected = logits(load(folder))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": dict(list(tensors.items())[:7]), "b.safetensors": dict(list(tensors.items())[7:])}
    for name, part in shards.items():
        save_file(part, folder / name)
    assert torch.equal(logits(load(folder)), expected)  # several files without an index
    weight_map = {tensor: name for name, part in shards.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(load(folder)), expected)

    bare = tmp_path / "without-prefix"
    bare.mkdir()
    write_config(bare)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors")
    assert torch.equal(logits(load(bare)), expected)


def test_dtype_is_cast_and_auto_is_the_checkpoints(folder):
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors().items()}
    save_file(tensors, folder / "model.safetensors")
    write_config(folder, torch_dtype="bfloat16")
    assert load(folder).dtype is torch.bfloat16
    cast = load(folder, dtype="float32")
    assert cast.pre_post_weight.final_norm.weight.dtype is torch.float32
    assert torch.equal(cast.pre_post_weight.final_norm.weight, tensors["model.norm.weight"].float())
    write_config(folder, dtype="float16")
    assert load(folder).dtype is torch.float32  # on a CPU


def test_harmless_extras_are_accepted(folder):
    tensors = random_tensors() | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors")
    expected = logits(load(folder))
    write_config(folder, tie_word_embeddings=True)  # the head's own tensor is then a copy that nobody needs
    tied = logits(load(folder))
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(logits(load(folder)), tied) and not torch.equal(tied, expected)


def test_dummy_tensors_are_parts_of_the_same_whole_in_memory_of_their_own():
    checkpoint = DummyCheckpoint({"a": ((6, 4), 0.0), "b": ((8, 4), 1.0)}, seed=3)

    def read(name, rows):
        return checkpoint.read(name, (rows, slice(None)), dtype=torch.float32, device=torch.device("cpu"))

    whole, part, other = read("a", slice(0, 6)), read("a", slice(2, 4)), read("b", slice(0, 8))
    assert torch.equal(part, whole[2:4]) and other.mean() > 0.9
    assert [one.untyped_storage().nbytes() for one in (whole, part, other)] == [96, 32, 128]
    assert torch.equal(whole, read("a", slice(0, 6)))


def test_dummy_weights_need_config_json_only(folder):
    (folder / "model.safetensors").unlink()
    first, again, other = (load(folder, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))
    layers = first.trans_layers_weight
    assert not torch.equal(layers[0].o_proj.weight, layers[1].o_proj.weight)
    norm, down = first.pre_post_weight.final_norm.weight, first.trans_layers_weight[0].down_proj.weight
    assert (norm - 1).abs().max() < 0.2 and 0.01 < down.std() < 0.03


def test_meta_device_counts_and_compares_without_reading(folder):
    model = load(folder, device="meta")
    real = load(folder)
    assert model.memory == real.memory
    assert model.memory.weight_bytes == 4 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert model.memory.kv_bytes_per_token == 4 * 2 * 2 * 2 * 4
    assert real.mem_manager.kv_cache.numel() * 4 == model.memory.kv_bytes
    save_file({"model.norm.weight": torch.ones(16)}, folder / "model.safetensors")
    assert "missing: lm_head.weight [11, 16]" in refusal(ModelFormatError, load, folder, device="meta")


def test_only_asked_bytes_are_read(folder):
    checkpoint = Checkpoint(folder)
    cpu = torch.device("cpu")
    part = checkpoint.read("lm_head.weight", (slice(2, 5), slice(0, 16)), dtype=torch.float32, device=cpu)
    assert torch.equal(part, random_tensors()["lm_head.weight"][2:5])
    assert checkpoint.bytes_read == 3 * 16 * 4


# The folder


def test_no_such_folder_names_the_nearest(folder):
    assert f"did you mean {folder}" in refusal(ModelNotFoundError, load, folder.parent / "tiny-lama")
    assert "is a file" in refusal(ModelNotFoundError, load, folder / "config.json")


def test_no_config_json(folder):
    (folder / "config.json").unlink()
    assert refusal(ModelFormatError, load, folder) == f"{folder} has no config.json"


def test_pickled_weights_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is not read" in refusal(ModelFormatError, load, folder)
    (folder / "pytorch_model.bin").unlink()
    assert "has no safetensors" in refusal(ModelFormatError, load, folder)


def test_links_out_of_the_folder_are_refused_but_the_hub_cache_is_not(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    assert "model.safetensors is a link that leaves" in refusal(ModelFormatError, load, folder)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "config.json").write_text((folder / "config.json").read_text())
    (snapshot / "config.json").symlink_to(Path("..", "..", "config.json"))  # no cache: it has no blobs
    assert "config.json is a link that leaves" in refusal(ModelFormatError, load, snapshot)
    (snapshot / "config.json").unlink()
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        source = outside if name == "model.safetensors" else folder / name
        source.rename(blobs / name)
        (snapshot / name).symlink_to(os.path.join("..", "..", "blobs", name))
    load(snapshot)


@pytest.mark.parametrize(
    "weight_map, words",
    [
        ({"a": "../model.safetensors"}, "'../model.safetensors' is not the name of a file in the model folder"),
        ({"a": "gone.safetensors"}, "has no gone.safetensors"),
        ({"a": "model.safetensors"}, "model.safetensors lacks tensor a of model.safetensors.index.json"),
        ({"a": 1}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_index(folder, weight_map, words):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert words in refusal(ModelFormatError, load, folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read(folder, name):
    (folder / name).chmod(0)
    assert f"{name} of {folder} may not be read" in refusal(ModelFormatError, load, folder)


# config.json


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "gpt9"}, "model_type 'gpt9' is unknown; known: bloom, llama, qwen2, qwen3"),
        ({"model_type": "lama"}, "nearest: llama"),
        ({"model_type": "../llama"}, "is unknown"),
        ({"model_type": None}, "has no model_type"),
        ({"hidden_size": -1}, "hidden_size=-1: an integer from 1 to 1048576 is needed"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5: an integer"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000: an integer"),
        ({"num_attention_heads": True}, "num_attention_heads=True: an integer"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
        ({"hidden_size": 18}, "hidden_size=18 is not a multiple of num_attention_heads=4"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; supported: 'silu'"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type='spiral' is unknown"),
        ({"rms_norm_eps": "tiny"}, "norm_eps='tiny': a number from 0 to 1 is needed"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no': true or false is needed"),
        ({"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
    ],
)
def test_config(folder, changes, words):
    write_config(folder, **changes)
    assert words in refusal(ModelFormatError, load, folder)


def test_config_says_everything_at_once(folder):
    write_config(folder, hidden_size=0, vocab_size="many")
    assert "hidden_size=0" in (text := refusal(ModelFormatError, load, folder)) and "vocab_size='many'" in text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "[" * 100_000, '{"hidden_size": NaN}', "\xff"])
def test_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(ModelFormatError, read_config, folder)


ROPE = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "long_factor": [1.0, 2.0],
    "short_factor": [1.0, 2.0],
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
JUNK = [
    None,
    0,
    -1,
    1,
    2,
    3,
    7,
    10**9,
    10**30,
    1.5,
    -0.1,
    float("nan"),
    float("inf"),
    1e-300,
    1e300,
    "x",
    [],
    [1],
    {},
    True,
]


def test_random_configs_load_or_are_refused(folder):
    randomness, num_refused = random.Random(0), 0
    for _ in range(400):
        config = CONFIG | {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "head_dim": 4, "hidden_act": "silu"}
        config["rope_scaling"] = ROPE | {
            "rope_type": randomness.choice(["linear", "dynamic", "yarn", "longrope", "llama3"])
        }
        for _ in range(randomness.randint(1, 3)):
            entries = randomness.choice([config, config.get("rope_scaling") or config])
            if isinstance(entries, dict):
                entries[randomness.choice([name for name in entries if name != "model_type"])] = randomness.choice(JUNK)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            load(folder, device="meta", load_format="dummy")
        except (ConfigError, ModelFormatError):
            num_refused += 1
    assert 200 < num_refused < 400


def test_synonyms(folder):
    names = {"n_embed": 16, "n_head": 4, "n_layer": 2, "seq_length": 9, "layer_norm_epsilon": 1e-3}
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom", "vocab_size": 11} | names))
    config = read_config(folder)
    assert (config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]) == (16, 4, 2)
    assert (config["max_position_embeddings"], config["norm_eps"], config["head_dim"]) == (9, 1e-3, 4)


# Tensors


def test_missing_unused_and_mis_shaped_come_in_one_message(folder):
    tensors = random_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 16)
    tensors["model.layers.0.self_attn.k_proj.bias"] = torch.zeros(8)
    save_file(tensors, folder / "model.safetensors")
    assert refusal(ModelFormatError, load, folder).splitlines() == [
        "missing: lm_head.weight [11, 16]",
        "missing: model.layers.1.mlp.up_proj.weight [24, 16]",
        "mis-shaped: model.layers.0.self_attn.k_proj.weight is [16, 16], the config makes it [8, 16]",
        "unused: model.layers.0.self_attn.k_proj.bias [8]",
    ]


# Arguments


@pytest.mark.parametrize(
    "options, words",
    [
        ({"mode": ["triton_int8kv"]}, "mode 'triton_int8kv' is not supported; supported: none"),
        ({"mode": "triton_int8kv"}, "mode 'triton_int8kv' is not supported; supported: none"),
        ({"load_way": "DS"}, "load_way 'DS' is not supported; supported: HF"),
        ({"load_format": "pt"}, "load_format 'pt' is not supported; supported: auto, safetensors, dummy"),
        ({"dtype": "int3"}, "dtype 'int3' is not supported; supported: float32, bfloat16, float16"),
        ({"block_size": 12}, "block_size=12 is not a power of two; nearest: 8"),
        ({"block_size": 0}, "block_size=0 is not a power of two; nearest: 1"),
        ({"max_total_token_num": 3}, "max_total_token_num=3 is less than one block of 16 tokens"),
        ({"max_model_len": 33}, "max_model_len=33: from 1 to 32 is possible; nearest: 32"),
    ],
)
def test_arguments(folder, options, words):
    assert words in refusal(ConfigError, load, folder, **options)
