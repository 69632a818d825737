"""Llama 1 to 3.1: RMSNorm, rotary positions, grouped-query attention and a SwiGLU feed-forward."""

from runtime.basemodel import (
    InferStateInfo,
    MergedColumnParallel,
    ParallelLMHead,
    PreAndPostLayerWeight,
    QKVParallel,
    RMSNorm,
    RowParallel,
    TpPartBaseModel,
    TransformerLayerInferTpl,
    TransformerLayerWeight,
    VocabParallelEmbedding,
    register_model,
)
from runtime.basemodel.rotary import longest_context, rope_parameters, rotary_tables
from runtime.kernels import ops


class LlamaPreAndPostLayerWeight(PreAndPostLayerWeight):
    embed_tokens = VocabParallelEmbedding("model.embed_tokens")
    final_norm = RMSNorm("model.norm")
    lm_head = ParallelLMHead("lm_head", tied_to="embed_tokens")


class LlamaTransformerLayerWeight(TransformerLayerWeight):
    prefix = "model.layers.{layer}."

    att_norm = RMSNorm("input_layernorm")
    qkv_proj = QKVParallel("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias="attention_bias")
    o_proj = RowParallel("self_attn.o_proj", bias="attention_bias", in_size="attention_size")
    ffn_norm = RMSNorm("post_attention_layernorm")
    gate_up_proj = MergedColumnParallel("mlp.gate_proj", "mlp.up_proj", bias="mlp_bias")
    down_proj = RowParallel("mlp.down_proj", bias="mlp_bias")


class LlamaInferStateInfo(InferStateInfo):
    def init_some_extra_state(self, model, *batch):
        self.cos, self.sin = model.cos_cached, model.sin_cached


class LlamaTransformerLayerInfer(TransformerLayerInferTpl):
    def _get_qkv(self, x, infer_state, layer_weight):
        q, k, v = layer_weight.qkv_proj(x)
        s = infer_state
        k_cache, v_cache = s.mem_manager.layer(self.layer_num_)
        ops.rotary_kv_store(q, k, v, s.cos, s.sin, s.position_ids, s.slot_mapping, k_cache, v_cache)
        return q

    def _ffn(self, x, infer_state, layer_weight):
        return layer_weight.down_proj(ops.silu_and_mul(layer_weight.gate_up_proj(x)))


@register_model("llama")
class LlamaTpPartModel(TpPartBaseModel):
    pre_and_post_weight_class = LlamaPreAndPostLayerWeight
    transformer_weight_class = LlamaTransformerLayerWeight
    transformer_layer_infer_class = LlamaTransformerLayerInfer
    infer_state_class = LlamaInferStateInfo

    config_defaults = {"norm_eps": 1e-6, "max_position_embeddings": 2048}
    optional_prefix = "model."
    ignored_tensors = ("model.layers.*.self_attn.rotary_emb.inv_freq",)

    def _verify_params(self):
        self._require_entry("hidden_act", None, "silu")
        self.rope = rope_parameters(self.config)
        super()._verify_params()

    def _longest_context(self):
        return longest_context(self.rope)

    def _init_custom(self):
        self.cos_cached, self.sin_cached = rotary_tables(self.rope, self.max_model_len, self.device)
