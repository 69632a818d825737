"""Qwen3: Llama with an RMSNorm on every query and key head."""

from runtime.basemodel import RMSNorm, register_model
from runtime.kernels import ops

from .llama import LlamaTpPartModel, LlamaTransformerLayerInfer, LlamaTransformerLayerWeight


class Qwen3TransformerLayerWeight(LlamaTransformerLayerWeight):
    q_norm = RMSNorm("self_attn.q_norm", size="head_dim")
    k_norm = RMSNorm("self_attn.k_norm", size="head_dim")


class Qwen3TransformerLayerInfer(LlamaTransformerLayerInfer):
    def _get_qkv(self, x, infer_state, layer_weight):
        q, k, v = layer_weight.qkv_proj(x)
        s, q_norm, k_norm = infer_state, layer_weight.q_norm, layer_weight.k_norm
        ops.rotary_kv_store(
            q, k, v, s.cos, s.sin, s.position_ids, s.slot_mapping, *s.mem_manager.layer(self.layer_num_),
            q_norm=q_norm.weight, k_norm=k_norm.weight, eps=q_norm.eps,
        )  # fmt: skip
        return q


@register_model("qwen3")
class Qwen3TpPartModel(LlamaTpPartModel):
    transformer_weight_class = Qwen3TransformerLayerWeight
    transformer_layer_infer_class = Qwen3TransformerLayerInfer

    # Qwen3's default; its head_dim does not follow from hidden_size.
    config_defaults = LlamaTpPartModel.config_defaults | {"head_dim": 128}

    def _verify_params(self):
        self._require_entry("use_sliding_window", None, False)
        super()._verify_params()
