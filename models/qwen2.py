"""Qwen2 and Qwen2.5: Llama with a bias on query, key and value."""

from runtime.basemodel import QKVParallel, register_model

from .llama import LlamaTpPartModel, LlamaTransformerLayerWeight


class Qwen2TransformerLayerWeight(LlamaTransformerLayerWeight):
    qkv_proj = QKVParallel("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=True)


@register_model("qwen2")
class Qwen2TpPartModel(LlamaTpPartModel):
    transformer_weight_class = Qwen2TransformerLayerWeight

    def _verify_params(self):
        self._require_entry("use_sliding_window", None, False)
        super()._verify_params()
