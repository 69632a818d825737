"""The model contract: the order of its life cycle, a family made from nothing, and the page that explains it."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from runtime.basemodel import (
    ColumnParallel,
    ParallelLMHead,
    PreAndPostLayerWeight,
    QKVParallel,
    RMSNorm,
    RowParallel,
    TpPartBaseModel,
    TransformerLayerInferTpl,
    TransformerLayerWeight,
    VocabParallelEmbedding,
    known_model_types,
    load_model,
    register_model,
    registry,
)
from runtime.errors import CapacityError
from runtime.models.llama import LlamaTpPartModel

REPOSITORY = Path(__file__).parents[2]


# A toy family: attention without positions, a squared-ReLU feed-forward, one norm for both.
class ToyPreAndPost(PreAndPostLayerWeight):
    embed_tokens = VocabParallelEmbedding("wte")
    final_norm = RMSNorm("norm")
    lm_head = ParallelLMHead("wte", tied_to="embed_tokens")


class ToyLayer(TransformerLayerWeight):
    prefix = "{layer}."
    att_norm = RMSNorm("norm")
    qkv_proj = QKVParallel("q", "k", "v")
    o_proj = RowParallel("o", in_size="attention_size")
    up_proj = ColumnParallel("up", bias=True)
    down_proj = RowParallel("down")


class ToyLayerInfer(TransformerLayerInferTpl):
    def _ffn_norm(self, x, residual, infer_state, layer_weight):
        return layer_weight.att_norm.of_sum(x, residual)

    def _ffn(self, x, infer_state, layer_weight):
        return layer_weight.down_proj(F.relu(layer_weight.up_proj(x)).square())


class ToyModel(TpPartBaseModel):
    pre_and_post_weight_class = ToyPreAndPost
    transformer_weight_class = ToyLayer
    transformer_layer_infer_class = ToyLayerInfer
    config_defaults = {"norm_eps": 1e-6, "tie_word_embeddings": True}


def toy_in_plain_torch(model, tokens):
    """The same formulas on the model's own weights: logits of every position."""
    pre_post = model.pre_post_weight
    x = pre_post.embed_tokens.weight[tokens]
    heads, head_dim = model.tp_q_head_num_, model.head_dim_
    for w in model.trans_layers_weight:
        q, k, v = (
            F.linear(rms(x, w.att_norm), w.qkv_proj.weight).unflatten(1, (-1, head_dim)).transpose(0, 1).split(heads)
        )
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + F.linear(attention, w.o_proj.weight)
        up = F.linear(rms(x, w.att_norm), w.up_proj.weight, w.up_proj.bias)
        x = x + F.linear(F.relu(up).square(), w.down_proj.weight)
    return F.linear(rms(x, pre_post.final_norm), pre_post.embed_tokens.weight)


def rms(x, norm):
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """Families registered here are gone afterwards."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_model("toy")(ToyModel)


@pytest.fixture
def toy(tmp_path):
    config = {"model_type": "toy", "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3, "num_hidden_layers": 2}))

    def load(**options):
        model = load_model(tmp_path, max_total_token_num=32, block_size=4, load_format="dummy", **options)
        for weight in model.trans_layers_weight:
            for param in (weight.qkv_proj, weight.o_proj, weight.up_proj, weight.down_proj):
                param.weight.mul_(10)
        model.pre_post_weight.embed_tokens.weight.mul_(10)
        return model

    return load


def test_a_family_made_from_nothing_runs_without_an_engine(toy, rows):
    assert "toy" in known_model_types()
    model, tokens = toy(), [5, 30, 2, 7, 19]
    expected = toy_in_plain_torch(model, torch.tensor(tokens))
    assert expected.std() > 0.3
    driver = rows(model)
    torch.testing.assert_close(driver.step({0: tokens[:3]})[0], expected[2], rtol=0, atol=1e-5)
    for position in (3, 4):
        logits = driver.step({0: [tokens[position]]}, decode=True)[0]
        torch.testing.assert_close(logits, expected[position], rtol=0, atol=1e-5)


def test_life_cycle(tiny):
    steps = [
        "_init_config", "_verify_must", "_verify_params", "_init_weights", "_init_mem_manager", "_init_infer_layer",
        "_init_some_value", "_init_custom",
    ]  # fmt: skip
    called = []

    class Recorded(LlamaTpPartModel):
        def __getattribute__(self, name):
            if name in steps and name not in called:
                called.append(name)
            return super().__getattribute__(name)

    Recorded(0, 1, tiny("llama-default").folder, 64)
    assert called == steps


def test_blocks_by_hand(toy):
    model = toy()  # 8 blocks of 4 tokens
    b_loc = model.new_b_loc()
    model.mem_manager.extend(b_loc, [9, 4])
    used = b_loc[b_loc > 0].tolist()
    assert len(set(used)) == 4 and min(used) >= 1 and max(used) <= 8
    with pytest.raises(CapacityError, match="5 KV blocks are needed, 4 of 8 are free"):
        model.mem_manager.extend(b_loc, [9, 4, 20])
    model.mem_manager.release(b_loc, 0)
    model.mem_manager.extend(b_loc, [0, 4, 20])
    assert b_loc[0].sum() == 0 and (b_loc[2] > 0).sum() == 5


def test_a_decode_step_of_prepared_state_is_the_models_dtype(toy):
    model = toy(dtype="bfloat16")
    b_loc = model.new_b_loc()
    model.mem_manager.extend(b_loc, [1])
    zero, one = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    state = model.make_infer_state(
        zero, batch_size=1, total_token_num=1, max_len_in_batch=1, is_prefill=False, b_loc=b_loc, b_row=zero,
        b_start_loc=torch.tensor([0, 1], dtype=torch.int32), b_seq_len=one, position_ids=zero,
        slot_mapping=b_loc[:1, 0].long() * model.block_size, max_new_tokens_in_batch=1,
    )  # fmt: skip
    logits = model.run(zero, state)
    assert logits.dtype is torch.bfloat16 and logits.shape == (1, 32)


def test_the_page_about_adding_a_model():
    page = (REPOSITORY / "docs" / "adding_a_model.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace = {"__name__": "adding_a_model"}
    for block in blocks:
        exec(block, namespace)
    assert namespace["model"].config["model_type"] == "gpt_neox"


def test_model_files_stay_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (REPOSITORY / "models").glob("*.py")}
    assert {name for name, length in lengths.items() if length >= 150} == set()
