"""Tiny random checkpoints for the tests of the engine."""

import json
import time
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 384
# enough pairs of letters for a few hundred merges
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    *(f"word{a}{b} {b}{a}" for a in "abcdefghij" for b in "klmnopqrst"),
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def write_tokenizer(folder: Path, vocab_size: int = 320, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """A byte-level BPE tokenizer; <eos> is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken("<pad>"), AddedToken("<eos>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def make_tokenizer():
    return write_tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Two layers of random weights, written by transformers; logits spread enough for greedy text to be varied."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def reference(tiny_llama):
    """The same checkpoint in transformers."""
    return LlamaForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="module")
def llm(tiny_llama):
    from runtime import LLM

    with LLM(str(tiny_llama), block_size=4, num_kv_blocks=512, max_num_batched_tokens=64) as llm:
        yield llm


@pytest.fixture(scope="session")
def wait_until_idle():
    """Returns once an LLM holds neither a request nor a KV block; fails after ten seconds."""

    def wait(llm):
        deadline = time.monotonic() + 10
        while (stats := llm.stats).num_running or stats.num_waiting or stats.num_free_blocks < stats.num_blocks:
            assert time.monotonic() < deadline, "requests are left"
            time.sleep(0.01)

    return wait
