"""Norms, each one op with the sum over the ranks and the residual before it."""

from __future__ import annotations

from torch import Tensor

from ...kernels import ops
from ...loader import ModelConfig
from ...parallel import PendingSum, TpGroup
from .param import Param, Placement, Shard, size_of, whole


class Norm:
    """A norm over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, placement: Placement) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps
        self._tp = placement.tp

    def __call__(self, x: Tensor) -> Tensor:
        """norm(x) of an x that is whole on this rank."""
        return self._norm(x, None)

    def of_sum(self, x: Tensor | PendingSum | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """norm(residual + sum of x over the ranks) and that sum; `residual` is overwritten. None adds nothing."""
        if x is None:
            return self._norm(residual, None), residual
        if isinstance(x, PendingSum):
            return x.norm(residual, self.weight, self.bias, self.eps), residual
        return self._tp.all_reduce_norm(x, residual, self.weight, self.bias, self.eps), residual

    def _norm(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if self.bias is None:
            return ops.rms_norm(x, residual, self.weight, self.eps)
        return ops.layer_norm(x, residual, self.weight, self.bias, self.eps)


class RMSNorm(Param[Norm]):
    """Scaled by the root of the mean square; `size` names the config entry of its length. Whole on every rank."""

    def __init__(self, name: str, *, size: str = "hidden_size") -> None:
        super().__init__(name)
        self.size = size

    def shards(self, prefix: str, config: ModelConfig, tp: TpGroup) -> dict[str, list[Shard]]:
        n = size_of(config, self.size)
        found = {"weight": [Shard(f"{prefix}{self.names[0]}.weight", (n,), whole(n), mean=1.0)]}
        if self.has_bias(config):
            found["bias"] = [Shard(f"{prefix}{self.names[0]}.bias", (n,), whole(n))]
        return found

    def place(self, tensors: dict[str, Tensor], config: ModelConfig, placement: Placement) -> Norm:
        return Norm(tensors["weight"], tensors.get("bias"), config["norm_eps"], placement)


class LayerNorm(RMSNorm):
    """Centred, scaled by the standard deviation, with a bias."""

    def __init__(self, name: str, *, size: str = "hidden_size") -> None:
        super().__init__(name, size=size)
        self.bias = True
