"""Logits in float32 agree with transformers within 1e-5, however a sequence is cut into steps."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.basemodel import load_model

ATOL = 1e-5


def assert_close(logits, expected):
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)


@pytest.fixture
def expected(tiny, family, sequences):
    """Logits of every position of every sequence."""
    return [tiny(family).hf_logits(tokens) for tokens in sequences]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_logits(tiny, rows, family, sequences, expected, block_size):
    assert 0.5 < torch.cat(expected).std() < 2
    model = tiny(family).load(block_size=block_size, max_total_token_num=4096)
    check_prefill_then_decode(rows(model), sequences, expected)
    check_mixed_steps(rows(model), sequences, expected)
    check_cached_prefix(rows(model), sequences, expected, block_size)
    for chunk in range(1, 8):
        check_chunked_prefill(rows(model), sequences, expected, chunk)


def check_prefill_then_decode(driver, sequences, expected, prompt_len=6):
    logits = driver.step({i: tokens[:prompt_len] for i, tokens in enumerate(sequences)})
    for i, tokens in enumerate(sequences):
        assert_close(logits[i], expected[i][min(prompt_len, len(tokens)) - 1])
    for position in range(prompt_len, max(map(len, sequences))):
        going = [i for i, tokens in enumerate(sequences) if len(tokens) > position]
        logits = driver.step({i: [sequences[i][position]] for i in going}, decode=True)
        for i in going:
            assert_close(logits[i], expected[i][position])


def check_mixed_steps(driver, sequences, expected):
    """Decode rows beside a first, a middle and a last chunk."""
    long, short, single, other = range(4)
    plan = [{short: 5, single: 1}, {short: 1, long: 9}, {short: 1, long: 4, other: 7}, {other: 1, short: 1, long: 10}]
    done = [0] * 4
    for step in plan:
        logits = driver.step({i: sequences[i][done[i] : done[i] + count] for i, count in step.items()})
        for i, count in step.items():
            done[i] += count
            assert_close(logits[i], expected[i][done[i] - 1])


def check_cached_prefix(driver, sequences, expected, block_size):
    """A second row over the first one's full blocks computes only the rest."""
    tokens = sequences[0]
    driver.step({0: tokens})
    num_shared = (len(tokens) - 1) // block_size
    driver.b_loc[1, :num_shared] = driver.b_loc[0, :num_shared]
    driver.lengths[1] = num_shared * block_size
    assert_close(driver.step({1: tokens[driver.lengths[1] :]})[1], expected[0][-1])


def check_chunked_prefill(driver, sequences, expected, chunk):
    for start in range(0, max(map(len, sequences)), chunk):
        going = {i: tokens[start : start + chunk] for i, tokens in enumerate(sequences) if len(tokens) > start}
        for i, logits in driver.step(going).items():
            assert_close(logits, expected[i][start + len(going[i]) - 1])


def test_greedy_text(tiny, rows, family, sequences):
    prompts, num_new = [tokens[:11] for tokens in sequences], 12
    driver, produced = rows(tiny(family).load()), {i: [] for i in range(len(prompts))}
    logits = driver.step(dict(enumerate(prompts)))
    for _ in range(num_new):
        for i, row in logits.items():
            produced[i].append(int(row.argmax()))
        logits = driver.step({i: tokens[-1:] for i, tokens in produced.items()}, decode=True)
    for i, tokens in enumerate(prompts):
        prompt = torch.tensor([tokens])
        generated = tiny(family).hf.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=num_new, do_sample=False
        )
        assert generated[0, len(tokens) :].tolist() == produced[i]


@pytest.mark.parametrize("rope, trained_len", [("dynamic", 48), ("longrope", 24)])
def test_rope_stretched_past_the_trained_length(tiny, rows, rope, trained_len):
    """Frequencies follow max_model_len; a transformers forward of that many tokens chooses the same."""
    family, max_model_len = tiny(f"llama-{rope}"), 2 * trained_len
    tokens = [(5 * i * i + i) % 67 for i in range(max_model_len)]
    expected = family.hf_logits(tokens)
    short = family.hf_logits(tokens[: trained_len // 2])
    assert (expected[trained_len // 2 - 1] - short[-1]).abs().max() > 1e-3
    driver = rows(family.load(max_model_len=max_model_len))
    for start in range(0, max_model_len, 12):
        assert_close(driver.step({0: tokens[start : start + 12]})[0], expected[start + 11])
    unstretched = rows(family.load(max_model_len=trained_len))
    assert_close(unstretched.step({0: tokens[: trained_len // 2]})[0], short[-1])


def test_bfloat16_is_as_close_as_transformers_own(tiny, rows, sequences):
    for name in ("llama-default", "qwen3", "bloom-6"):
        family = tiny(name)
        exact = torch.stack([family.hf_logits(tokens)[-1] for tokens in sequences])
        own = rows(family.load(dtype="bfloat16")).step(dict(enumerate(sequences)))
        error = (torch.stack(list(own.values())) - exact).pow(2).mean().sqrt()
        half = type(family.hf).from_pretrained(family.folder, dtype=torch.bfloat16)
        with torch.no_grad():
            theirs = torch.stack([half(torch.tensor([tokens])).logits[0, -1].float() for tokens in sequences])
        assert error < 1.5 * (theirs - exact).pow(2).mean().sqrt() < 0.1


def test_bloom_checkpoints_without_prefix_and_with_their_head(tiny, rows, sequences, tmp_path):
    family = tiny("bloom-6")
    tensors = load_file(family.folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    with_head = tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}
    expected = rows(family.load()).step({0: sequences[0]})[0]
    (tmp_path / "config.json").write_text((family.folder / "config.json").read_text())
    for variant in (bare, with_head):
        save_file(variant, tmp_path / "model.safetensors")
        model = load_model(tmp_path, max_total_token_num=64, block_size=4)
        assert torch.equal(rows(model).step({0: sequences[0]})[0], expected)


def without_rope(model):
    model.cos_cached.fill_(1.0)
    model.sin_cached.fill_(0.0)


def wrong_slope(model):
    model.alibi_slopes[-1] *= 0.5


def bias_twice(model):
    for layer in model.trans_layers_weight:
        layer.qkv_proj.bias *= 2


@pytest.mark.parametrize(
    "family, damage", [("llama-default", without_rope), ("bloom-12", wrong_slope), ("qwen2", bias_twice)]
)
def test_damage_is_seen(tiny, rows, sequences, family, damage):
    model = tiny(family).load()
    damage(model)
    logits = rows(model).step({0: sequences[0]})[0]
    assert (logits - tiny(family).hf_logits(sequences[0])[-1]).abs().max() > 100 * ATOL
