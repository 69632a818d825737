"""BLOOM: LayerNorm with bias, ALiBi instead of positions, a GELU feed-forward and a norm on the embedding."""

from runtime.basemodel import (
    ColumnParallel,
    InferStateInfo,
    LayerNorm,
    ParallelLMHead,
    PreAndPostLayerWeight,
    PreLayerInferTpl,
    QKVParallel,
    RowParallel,
    TpPartBaseModel,
    TransformerLayerInferTpl,
    TransformerLayerWeight,
    VocabParallelEmbedding,
    register_model,
)
from runtime.basemodel.alibi import alibi_slopes
from runtime.kernels import ops


def unpack_qkv(rows, config):
    """BLOOM's fused tensor is [heads, 3, head_dim, ...]."""
    return [part.flatten(0, 1) for part in rows.unflatten(0, (-1, 3, config["head_dim"])).unbind(1)]


class BloomPreAndPostLayerWeight(PreAndPostLayerWeight):
    embed_tokens = VocabParallelEmbedding("transformer.word_embeddings")
    embed_norm = LayerNorm("transformer.word_embeddings_layernorm")
    final_norm = LayerNorm("transformer.ln_f")
    lm_head = ParallelLMHead("lm_head", tied_to="embed_tokens")


class BloomTransformerLayerWeight(TransformerLayerWeight):
    prefix = "transformer.h.{layer}."

    att_norm = LayerNorm("input_layernorm")
    qkv_proj = QKVParallel("self_attention.query_key_value", bias=True, unpack=unpack_qkv)
    o_proj = RowParallel("self_attention.dense", bias=True, in_size="attention_size")
    ffn_norm = LayerNorm("post_attention_layernorm")
    up_proj = ColumnParallel("mlp.dense_h_to_4h", bias=True)
    down_proj = RowParallel("mlp.dense_4h_to_h", bias=True)


class BloomInferStateInfo(InferStateInfo):
    def init_some_extra_state(self, model, *batch):
        self.alibi_slopes = model.alibi_slopes


class BloomPreLayerInfer(PreLayerInferTpl):
    def _embed(self, input_ids, infer_state, layer_weight):
        return layer_weight.embed_norm(layer_weight.embed_tokens(input_ids))


class BloomTransformerLayerInfer(TransformerLayerInferTpl):
    def _ffn(self, x, infer_state, layer_weight):
        return layer_weight.down_proj(ops.gelu_tanh(layer_weight.up_proj(x)))


@register_model("bloom")
class BloomTpPartModel(TpPartBaseModel):
    pre_and_post_weight_class = BloomPreAndPostLayerWeight
    transformer_weight_class = BloomTransformerLayerWeight
    pre_layer_infer_class = BloomPreLayerInfer
    transformer_layer_infer_class = BloomTransformerLayerInfer
    infer_state_class = BloomInferStateInfo

    config_defaults = {"norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2048}
    optional_prefix = "transformer."

    def _init_config(self):
        super()._init_config()
        self.config["intermediate_size"] = self.config.get("intermediate_size") or 4 * self.config["hidden_size"]

    def _verify_params(self):
        self._require_entry("apply_residual_connection_post_layernorm", None, False)
        super()._verify_params()

    def _longest_context(self):
        return None  # ALiBi goes on past the trained length

    def _init_custom(self):
        heads = self.tp_q_head_num_
        slopes = alibi_slopes(self.config["num_attention_heads"])
        self.alibi_slopes = slopes[self.tp_rank_ * heads :][:heads].to(self.device)
