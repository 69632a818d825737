"""Linear layers. Sizes are names of config entries."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...errors import ConfigError
from ...kernels import ops
from ...loader import ModelConfig
from ...parallel import TpGroup
from .param import Index, Param, Placement, Shard, share, size_of, stacked, whole


class Linear:
    """x [tokens, in] to [tokens, out of this rank]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement) -> None:
        self.weight, self.bias = weight, bias
        self._tp = placement.tp
        self._deterministic = placement.deterministic

    def __call__(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias, deterministic=self._deterministic)


class RowLinear(Linear):
    """As `Linear`, but x holds this rank's input features, and the result is this rank's summand."""

    def reduced(self, x: Tensor) -> Tensor:
        """The sum over the ranks, for use where no norm follows that would add them."""
        return self._tp.all_reduce(self(x))


class QKVLinear(Linear):
    """x [tokens, hidden] to this rank's query, key and value, [tokens, heads, head_dim] each."""

    def __init__(self, weight: Tensor, bias: Tensor | None, placement: Placement, kv_heads: int, head_dim: int) -> None:
        super().__init__(weight, bias, placement)
        num_heads = weight.shape[0] // head_dim
        self._heads, self._head_dim = (num_heads - 2 * kv_heads, kv_heads, kv_heads), head_dim

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        qkv = super().__call__(x).view(x.shape[0], -1, self._head_dim)
        q, k, v = qkv.split_with_sizes(self._heads, dim=1)
        return q, k, v


class _LinearParam(Param[Linear]):
    def __init__(
        self,
        *names: str,
        bias: bool | str = False,
        in_size: str = "hidden_size",
        out_size: str = "intermediate_size",
    ) -> None:
        super().__init__(*names, bias=bias)
        self.in_size, self.out_size = in_size, out_size

    def index(self, shape: tuple[int, int], tp: TpGroup) -> Index:
        """This rank's rows and columns of a weight."""
        raise NotImplementedError

    def holds_bias(self, tp: TpGroup) -> bool:
        return True

    def shards(self, prefix: str, config: ModelConfig, tp: TpGroup) -> dict[str, list[Shard]]:
        shape = (size_of(config, self.out_size), size_of(config, self.in_size))
        index = self.index(shape, tp)
        found = {"weight": [Shard(f"{prefix}{name}.weight", shape, index) for name in self.names]}
        if self.has_bias(config):
            rows = index[:1] if self.holds_bias(tp) else None
            found["bias"] = [Shard(f"{prefix}{name}.bias", shape[:1], rows) for name in self.names]
        return found

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> Linear:
        return Linear(tensors["weight"], tensors.get("bias"), placement)


class MergedColumnParallel(_LinearParam):
    """Output features split; several projections of one size are stored, and multiplied, as one matrix."""

    def index(self, shape: tuple[int, int], tp: TpGroup) -> Index:
        return (share(self.out_size, shape[0], tp), slice(0, shape[1]))


class ColumnParallel(MergedColumnParallel):
    """Output features split."""

    def __init__(
        self, name: str, *, bias: bool | str = False, in_size: str = "hidden_size", out_size: str = "intermediate_size"
    ) -> None:
        super().__init__(name, bias=bias, in_size=in_size, out_size=out_size)


class Replicated(_LinearParam):
    """A linear layer whole on every rank."""

    def index(self, shape: tuple[int, int], tp: TpGroup) -> Index:
        return whole(*shape)


class RowParallel(_LinearParam):
    """Input features split; the bias is added by rank 0 alone."""

    def __init__(
        self, name: str, *, bias: bool | str = False, in_size: str = "intermediate_size", out_size: str = "hidden_size"
    ) -> None:
        super().__init__(name, bias=bias, in_size=in_size, out_size=out_size)

    def index(self, shape: tuple[int, int], tp: TpGroup) -> Index:
        return (slice(0, shape[0]), share(self.in_size, shape[1], tp))

    def holds_bias(self, tp: TpGroup) -> bool:
        return tp.rank == 0

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> RowLinear:
        return RowLinear(tensors["weight"], tensors.get("bias"), placement)


class QKVParallel(Param[QKVLinear]):
    """Query, key and value, split by heads and stored as one matrix; KV heads fewer than the ranks are replicated.

    Args:
        names: of query, key and value, or of one fused tensor.
        unpack: splits rows of the fused tensor, which are ordered by head so that a rank reads only its own, into those
            of query, key and value: `unpack(rows, config) -> (q, k, v)`. Called for the weight and for the bias.
    """

    def __init__(
        self,
        *names: str,
        bias: bool | str = False,
        unpack: Callable[[Tensor, ModelConfig], list[Tensor]] | None = None,
    ) -> None:
        super().__init__(*names, bias=bias)
        self.unpack = unpack

    def _rows(self, config: ModelConfig, tp: TpGroup) -> list[tuple[int, slice]]:
        """Of each checkpoint tensor: its rows, and which of them are this rank's."""
        head_dim, kv_heads = config["head_dim"], config["num_key_value_heads"]
        q_rows, kv_rows = config["attention_size"], kv_heads * head_dim
        if self.unpack is not None:
            heads = share("num_key_value_heads", kv_heads, tp)
            rows_per_head = (q_rows + 2 * kv_rows) // kv_heads
            return [(q_rows + 2 * kv_rows, slice(heads.start * rows_per_head, heads.stop * rows_per_head))]
        first, count = kv_head_share(kv_heads, tp)
        kv_part = slice(first * head_dim, (first + count) * head_dim)
        return [
            (q_rows, share("num_attention_heads times head_dim", q_rows, tp)),
            (kv_rows, kv_part),
            (kv_rows, kv_part),
        ]

    def shards(self, prefix: str, config: ModelConfig, tp: TpGroup) -> dict[str, list[Shard]]:
        hidden = config["hidden_size"]
        rows = list(zip(self.names, self._rows(config, tp), strict=True))
        found = {
            "weight": [
                Shard(f"{prefix}{name}.weight", (n, hidden), (part, slice(0, hidden))) for name, (n, part) in rows
            ]
        }
        if self.has_bias(config):
            found["bias"] = [Shard(f"{prefix}{name}.bias", (n,), (part,)) for name, (n, part) in rows]
        return found

    def arrange(self, parts: list[Tensor], config: ModelConfig, tp: TpGroup) -> Tensor:
        return stacked(parts if self.unpack is None else self.unpack(parts[0], config))

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> QKVLinear:
        _, kv_heads = kv_head_share(config["num_key_value_heads"], placement.tp)
        return QKVLinear(tensors["weight"], tensors.get("bias"), placement, kv_heads, config["head_dim"])


def kv_head_share(kv_heads: int, tp: TpGroup) -> tuple[int, int]:
    """This rank's first KV head and how many it holds; ranks share a head where there are fewer heads than ranks."""
    larger, smaller = max(kv_heads, tp.size), min(kv_heads, tp.size)
    if larger % smaller:
        raise ConfigError(
            f"num_key_value_heads={kv_heads} neither divides by tensor_parallel_size={tp.size} nor divides it",
            hint="tensor_parallel_size",
        )
    return tp.rank * kv_heads // tp.size, max(kv_heads // tp.size, 1)
