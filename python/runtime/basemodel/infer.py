"""What runs in a layer: stateless, weights and step are arguments.

Between layers goes the stream (x, residual): `residual` is the sum of the layers so far, x a summand that is still to
be added, and on several ranks still to be summed over them, which may have begun; None adds nothing. The norm that
comes next does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..kernels import ops
from ..loader import ModelConfig
from ..parallel import PendingSum
from .infer_state import InferStateInfo

if TYPE_CHECKING:
    from .token_parts import TokenPart

Summand = Tensor | PendingSum | None
Stream = tuple[Summand, Tensor]


class BaseLayerInfer:
    """Two entries: `context_forward` for any ragged batch, `token_forward` for one decode step of a batch."""

    def __init__(self, config: ModelConfig, layer_num: int | None = None) -> None:
        self.config, self.layer_num_ = config, layer_num

    def context_forward(self, input: Any, infer_state: InferStateInfo, layer_weight: Any) -> Any:
        """Any ragged batch: new tokens of the rows side by side, decode rows included."""
        raise NotImplementedError

    def token_forward(self, input: Any, infer_state: InferStateInfo, layer_weight: Any) -> Any:
        """One new token a row; what CUDA graphs capture."""
        raise NotImplementedError


class PreLayerInfer(BaseLayerInfer):
    """input_ids [tokens] to the stream."""


class TransformerLayerInfer(BaseLayerInfer):
    """Stream to stream."""


class PostLayerInfer(BaseLayerInfer):
    """The stream to logits, one row for each row of the batch or token of `logits_index`."""


class PreLayerInferTpl(PreLayerInfer):
    """The embedding. layer_weight: `embed_tokens`."""

    def _embed(self, input_ids: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        embedded: Tensor = layer_weight.embed_tokens(input_ids)
        return embedded

    def context_forward(self, input: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Stream:
        return None, self._embed(input, infer_state, layer_weight)

    token_forward = context_forward


class TransformerLayerInferTpl(TransformerLayerInfer):
    """Attention, then feed-forward, each on the norm of the residual. A family overrides the hooks that differ.

    layer_weight: `att_norm`, `qkv_proj`, `o_proj`, `ffn_norm` and what `_ffn` uses.
    """

    def __init__(self, config: ModelConfig, layer_num: int) -> None:
        super().__init__(config, layer_num)
        self.layer_num_: int = layer_num
        self._sm_scale: float = config["head_dim"] ** -0.5

    def _att_norm(
        self, x: Summand, residual: Tensor, infer_state: InferStateInfo, layer_weight: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalised input of the attention, and the new residual."""
        normalised: tuple[Tensor, Tensor] = layer_weight.att_norm.of_sum(x, residual)
        return normalised

    def _get_qkv(self, x: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        """q [tokens, heads, head_dim] with positions applied; k and v go to the cache."""
        q, k, v = layer_weight.qkv_proj(x)
        ops.kv_store(k, v, infer_state.slot_mapping, *infer_state.mem_manager.layer(self.layer_num_))
        return q  # type: ignore[no-any-return]

    def _context_attention_kernel(self, q: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        return ops.context_attention(
            q,
            *infer_state.mem_manager.layer(self.layer_num_),
            infer_state.b_loc,
            infer_state.b_row,
            infer_state.b_start_loc,
            infer_state.b_seq_len,
            infer_state.max_new_tokens_in_batch,
            sm_scale=self._sm_scale,
            alibi_slopes=infer_state.alibi_slopes,
            deterministic=infer_state.deterministic,
        )

    def _token_attention_kernel(self, q: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        return ops.token_attention(
            q,
            *infer_state.mem_manager.layer(self.layer_num_),
            infer_state.b_loc,
            infer_state.b_row,
            infer_state.b_seq_len,
            infer_state.max_len_in_batch,
            sm_scale=self._sm_scale,
            alibi_slopes=infer_state.alibi_slopes,
            deterministic=infer_state.deterministic,
        )

    def _get_o(self, o: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        """This rank's summand, [tokens, hidden]."""
        summand: Tensor = layer_weight.o_proj(o.flatten(1))
        return summand

    def _ffn_norm(
        self, x: Summand, residual: Tensor, infer_state: InferStateInfo, layer_weight: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalised input of the feed-forward, and the new residual."""
        normalised: tuple[Tensor, Tensor] = layer_weight.ffn_norm.of_sum(x, residual)
        return normalised

    def _ffn(self, x: Tensor, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        """This rank's summand, [tokens, hidden]."""
        raise NotImplementedError

    def _block(
        self,
        stream: Stream,
        infer_state: InferStateInfo,
        layer_weight: Any,
        attention_kernel: Callable[[Tensor, InferStateInfo, Any], Tensor],
    ) -> Stream:
        x, residual = self._att_norm(*stream, infer_state, layer_weight)
        q = self._get_qkv(x, infer_state, layer_weight)
        o = self._get_o(attention_kernel(q, infer_state, layer_weight), infer_state, layer_weight)
        x, residual = self._ffn_norm(o, residual, infer_state, layer_weight)
        return self._ffn(x, infer_state, layer_weight), residual

    def context_forward(self, input: Stream, infer_state: InferStateInfo, layer_weight: Any) -> Stream:
        return self._block(input, infer_state, layer_weight, self._context_attention_kernel)

    def token_forward(self, input: Stream, infer_state: InferStateInfo, layer_weight: Any) -> Stream:
        return self._block(input, infer_state, layer_weight, self._token_attention_kernel)

    def context_forward_in_parts(
        self,
        streams: Sequence[Stream],
        parts: Sequence[TokenPart],
        infer_state: InferStateInfo,
        layer_weight: Any,
        begin: Callable[[Tensor], Summand],
        begin_next: Callable[[Tensor], Summand],
    ) -> list[Stream]:
        """`context_forward` of a step's parts, whose streams are their tokens' rows.

        Args:
            begin: begins the sum of a summand of the attention.
            begin_next: that of the feed-forward, which the next layer takes.
        """
        q, residuals = self._queries_of_parts(streams, parts, layer_weight)
        o = self._context_attention_kernel(q, infer_state, layer_weight)
        sums = [begin(self._get_o(o[part.tokens], part.state, layer_weight)) for part in parts]
        found: list[Stream] = []
        for total, residual, part in zip(sums, residuals, parts):
            x, residual = self._ffn_norm(total, residual, part.state, layer_weight)
            found.append((begin_next(self._ffn(x, part.state, layer_weight)), residual))
        return found

    def _queries_of_parts(
        self, streams: Sequence[Stream], parts: Sequence[TokenPart], layer_weight: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Queries of all tokens in one tensor, and the residuals of the parts."""
        queries, residuals = None, []
        for stream, part in zip(streams, parts):
            x, residual = self._att_norm(*stream, part.state, layer_weight)
            q = self._get_qkv(x, part.state, layer_weight)
            if queries is None:
                queries = q.new_empty(parts[-1].tokens.stop, *q.shape[1:])
            queries[part.tokens] = q
            residuals.append(residual)
        assert queries is not None, "a step has tokens"
        return queries, residuals


class PostLayerInferTpl(PostLayerInfer):
    """Final norm and head. layer_weight: `final_norm`, `lm_head`."""

    def context_forward(self, input: Stream, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        index = infer_state.logits_index
        return self._logits(input, infer_state.b_start_loc[1:] - 1 if index is None else index, layer_weight)

    def token_forward(self, input: Stream, infer_state: InferStateInfo, layer_weight: Any) -> Tensor:
        return self._logits(input, infer_state.logits_index, layer_weight)

    def _logits(self, stream: Stream, index: Tensor | None, layer_weight: Any) -> Tensor:
        if index is not None:
            x, residual = stream
            assert not isinstance(x, PendingSum), "that of the last layer was not begun: few of its rows are needed"
            stream = (None if x is None else x[index], residual[index])
        x, _ = layer_weight.final_norm.of_sum(*stream)
        logits: Tensor = layer_weight.lm_head(x)
        return logits
