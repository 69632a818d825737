"""Two layers of the real models' shapes on a GPU: accuracy in bfloat16, and bits that no neighbour changes."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from runtime.basemodel import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONFIGS = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs"
BLOCK_SIZE = 64


def shortened(name, folder, **changes):
    """A folder with the model's config.json, but for two layers and `changes`."""
    config = json.loads((CONFIGS / name / "config.json").read_text())
    layers = "n_layer" if "n_layer" in config else "num_hidden_layers"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {layers: 2} | changes))
    return folder


def tokens_of(length, seed):
    chosen = random.Random(seed)
    return [chosen.randrange(4096) for _ in range(length)]


def load(folder, **options):
    defaults = {"device": "cuda", "dtype": "bfloat16", "block_size": BLOCK_SIZE, "max_model_len": 4096}
    return load_model(folder, **defaults | options)


@torch.no_grad()
def logits_of(hf, sequences):
    return torch.stack([hf(torch.tensor([tokens], device="cuda")).logits[0, -1].float() for tokens in sequences])


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-0.6b", "bloom-7b1"])
def test_bfloat16_is_as_close_as_transformers_own(name, tmp_path, rows):
    source = shortened(name, tmp_path / "source", vocab_size=4096)
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = transformers.AutoConfig.from_pretrained(source)
        half = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    half.save_pretrained(tmp_path / "saved")
    sequences = [tokens_of(length, seed=length) for length in (700, 33, 1, 2000)]
    theirs = logits_of(half, sequences)
    exact = logits_of(half.float(), sequences)

    driver = rows(load(tmp_path / "saved", max_total_token_num=8192, max_num_seqs=8))
    prefilled = driver.step({i: tokens[:-1] for i, tokens in enumerate(sequences) if len(tokens) > 1})
    assert len(prefilled) == 3
    ours = driver.step({i: tokens[-1:] for i, tokens in enumerate(sequences)}, decode=True)
    whole = rows(driver.model).step(dict(enumerate(sequences)))
    for answer in (ours, whole):
        error = (torch.stack(list(answer.values())) - exact).pow(2).mean().sqrt()
        assert error < 1.2 * (theirs - exact).pow(2).mean().sqrt()


SEQUENCE = tokens_of(3000, seed=1)
NEXT = [17]


def after_chunks(driver, chunk, others=0):
    """Logits of SEQUENCE in chunks and of one more token, while `others` rows of many lengths decode beside it."""
    if others:
        driver.step({row: tokens_of(1 + 37 * row % 400, seed=row) for row in range(1, others + 1)})
    for first in range(0, len(SEQUENCE), chunk):
        beside = {row: [row] for row in range(1, others + 1)}
        prompt = driver.step({**beside, 0: SEQUENCE[first : first + chunk]})[0]
    return prompt, driver.step({0: NEXT, **{row: [9] for row in range(1, others + 1)}}, decode=True)[0]


def after_a_cached_prefix(driver, cached):
    """The same with the blocks that another row computed."""
    driver.step({1: SEQUENCE[:cached]})
    driver.b_loc[0], driver.lengths[0] = driver.b_loc[1], cached
    driver.b_loc[0, cached // BLOCK_SIZE :] = 0
    return driver.step({0: SEQUENCE[cached:]})[0], driver.step({0: NEXT}, decode=True)[0]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "bloom-7b1"])
def test_deterministic_logits_are_bitwise_the_same(name, tmp_path, rows):
    model = load(
        shortened(name, tmp_path / "model"),
        load_format="dummy",
        deterministic=True,
        max_total_token_num=1 << 18,
        max_num_seqs=257,
    )

    def run(way, *args):
        driver = rows(model, num_rows=257)
        try:
            return way(driver, *args)
        finally:
            model.mem_manager._unused = None  # all blocks are free again

    prompt, decoded = run(after_chunks, len(SEQUENCE))
    assert prompt.isfinite().all() and decoded.isfinite().all()
    for way, *args in [
        *[(after_chunks, 512, others) for others in (0, 6, 63, 255)],
        (after_chunks, 2048, 0),
        (after_chunks, 2048, 255),
        (after_a_cached_prefix, 2944),
        (after_a_cached_prefix, 64),
    ]:
        found = run(way, *args)
        assert torch.equal(found[0], prompt) and torch.equal(found[1], decoded), (way.__name__, args)
