"""Tiny random checkpoints written by transformers, and a hand-driven model to compare with them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from runtime.basemodel import load_model

VOCAB, TRAINED_LEN = 67, 48
SEQUENCES = [[(7 * i * i + 3 * i + salt) % VOCAB for i in range(length)] for salt, length in enumerate((23, 9, 1, 14))]

ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 24,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def _rotary(config_class, rope="default", **changes):
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED_LEN,
        rope_parameters={"rope_theta": 100.0, **ROPES[rope]},
        tie_word_embeddings=False,
    )
    return config_class(**sizes | changes)


def _bloom(heads):
    return transformers.BloomConfig(vocab_size=VOCAB, hidden_size=8 * heads, n_layer=2, n_head=heads)


CONFIGS = {
    **{f"llama-{rope}": lambda rope=rope: _rotary(transformers.LlamaConfig, rope) for rope in ROPES},
    "llama-tied": lambda: _rotary(transformers.LlamaConfig, tie_word_embeddings=True),
    "llama-bias": lambda: _rotary(transformers.LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama-head-dim": lambda: _rotary(transformers.LlamaConfig, head_dim=16, num_key_value_heads=8),
    "qwen2": lambda: _rotary(transformers.Qwen2Config, tie_word_embeddings=True),
    "qwen3": lambda: _rotary(transformers.Qwen3Config, head_dim=16),
    **{f"bloom-{heads}": lambda heads=heads: _bloom(heads) for heads in (6, 8, 12)},
}
# Not in every test of a family.
SPECIAL = {
    "llama-long": lambda: _rotary(transformers.LlamaConfig, max_position_embeddings=640),
    "qwen3-kv3": lambda: _rotary(transformers.Qwen3Config, head_dim=16, num_attention_heads=6, num_key_value_heads=3),
}


class Tiny:
    """A checkpoint and the transformers model that wrote it."""

    def __init__(self, name, folder):
        torch.manual_seed(0)
        self.hf = transformers.AutoModelForCausalLM.from_config((CONFIGS | SPECIAL)[name](), dtype=torch.float32).eval()
        for key, parameter in self.hf.named_parameters():
            # logits of a standard deviation of about 1; norms near, but not at, 1
            is_norm_weight = parameter.dim() == 1 and key.endswith("weight")
            torch.nn.init.normal_(parameter, float(is_norm_weight), 0.1 if parameter.dim() == 1 else 0.13)
        self.folder = folder / name
        self.hf.generation_config.eos_token_id = None  # generate() shall go on
        self.hf.save_pretrained(self.folder)

    @torch.no_grad()
    def hf_logits(self, tokens):
        """Of every position, [len(tokens), vocab]."""
        return self.hf(torch.tensor([tokens])).logits[0].float()

    def load(self, **options):
        # longrope's factors switch at its original length; transformers switches forth and back with every call
        max_model_len = 24 if self.folder.name == "llama-longrope" else None
        defaults = {"max_total_token_num": 512, "block_size": 4, "max_num_seqs": 8, "max_model_len": max_model_len}
        return load_model(self.folder, **defaults | options)


class Rows:
    """Sequences fed to a model step by step, without an engine."""

    def __init__(self, model, num_rows=4):
        self.model, self.b_loc, self.lengths = model, model.new_b_loc().cpu(), [0] * num_rows

    def step(self, new, decode=False):
        """Feeds {row: tokens}, in that order; the logits after the last token of each, {row: [vocab]}."""
        rows = list(new)
        for row in rows:
            self.lengths[row] += len(new[row])
        self.model.mem_manager.extend(self.b_loc, self.lengths)
        device = self.model.device
        b_seq_len = torch.tensor([self.lengths[row] for row in rows])
        counts = torch.tensor([len(new[row]) for row in rows])
        logits = self.model.forward(
            len(rows),
            int(b_seq_len.sum()),
            int(b_seq_len.max()),
            torch.tensor([token for row in rows for token in new[row]], dtype=torch.int32, device=device),
            self.b_loc[rows].to(device),
            counts.cumsum(0) - counts,
            b_seq_len,
            not decode,
        )
        return dict(zip(rows, logits))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(name) -> Tiny, each built once."""
    built, folder = {}, tmp_path_factory.mktemp("checkpoints")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def get(name):
        if name not in built:
            built[name] = Tiny(name, folder)
        return built[name]

    return get


@pytest.fixture
def rows():
    return Rows


@pytest.fixture
def sequences():
    return SEQUENCES


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param
