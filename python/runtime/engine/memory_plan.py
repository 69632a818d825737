"""The memory that an engine will take, and how much of it is KV cache, from config.json and tensor headers alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from runtime.config import EngineConfig
from runtime.engine.device import GIB, Device, probe_device, resolve_device, stated_device
from runtime.engine.memory_needs import Needs, memory_needs
from runtime.errors import CapacityError, ConfigError

# share of a CPU's memory, and most bytes, that the KV caches of all ranks take when nothing is said; untouched pages
# cost nothing
_CPU_KV_SHARE = 0.25
_CPU_KV_BYTES = 4 << 30

_LEAST_ADVICE = 16  # tokens or requests; below it an argument helps nobody


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device, that of one rank, and what fits into them.

    Attributes:
        weights, workspace, graphs: bytes. The workspace is all that is neither weights, KV cache nor graphs; `parts`
            says what of.
        kv_bytes_per_token: keys and values of one token in all layers.
        kv_blocks, block_size: blocks that requests can use, and tokens of each.
        context: bytes in use before the engine starts: the CUDA context, other processes.
        max_model_len: longest context that one request can have; less than `model_len`, what was asked for or the
            model is made for, where the KV cache holds no more.
        device, device_bytes: its name and memory.
    """

    weights: int
    kv_bytes_per_token: int
    kv_blocks: int
    block_size: int
    workspace: int
    graphs: int
    context: int
    max_model_len: int
    model_len: int
    device: str
    device_bytes: int
    parts: dict[str, int]

    @property
    def kv_cache(self) -> int:
        """Bytes of all blocks, that of the padding included."""
        return self.kv_bytes_per_token * self.block_size * (self.kv_blocks + 1)

    @property
    def total(self) -> int:
        """Bytes of the device that will be in use."""
        return self.context + self.weights + self.kv_cache + self.workspace + self.graphs

    @property
    def max_sequences(self) -> int:
        """Requests of `max_model_len` tokens that the KV cache holds at once."""
        return self.kv_blocks // -(-self.max_model_len // self.block_size)

    def as_dict(self) -> dict[str, Any]:
        """Its fields and what follows from them, as JSON."""
        derived = {"kv_cache": self.kv_cache, "total": self.total, "max_sequences": self.max_sequences}
        return {**asdict(self), **derived}


def plan_for(config: EngineConfig, device_name: str | None, device_memory_bytes: int | None) -> MemoryPlan:
    """The plan on a device that is named or described; on this machine's where both are None."""
    if device_name is None and device_memory_bytes is None:
        return plan_memory(config, probe_device(resolve_device(config.device)))
    if device_memory_bytes is not None and device_memory_bytes < 1:
        raise ConfigError(f"device_memory_bytes={device_memory_bytes}: must be at least 1")
    if config.device == "cpu":
        if device_name is not None:
            raise ConfigError(f"device_name={device_name!r} names a CUDA device, and device is 'cpu'")
        return plan_memory(config, Device("cpu", "a CPU", device_memory_bytes or 0))
    return plan_memory(config, stated_device(device_name, device_memory_bytes))


def plan_memory(config: EngineConfig, device: Device) -> MemoryPlan:
    """Sizes the KV cache and adds up the rest; reads no weight.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError, DeviceNotFoundError: it cannot run there.
        CapacityError: it does not fit; says what would.
    """
    config = config.for_device(device.kind)
    try:
        return _plan(config, device)
    except _DoesNotFit as error:
        hint = _ways_out(config, device, error)
        raise CapacityError(str(error), hint=hint) from None


class _DoesNotFit(Exception):
    """The sentence, and what is known of a way out.

    Args:
        needed: bytes of the device.
        max_model_len: that was tried; fitting_len: that would fit, where that is known.
    """

    def __init__(self, message: str, needed: int, max_model_len: int, fitting_len: int | None = None) -> None:
        super().__init__(message)
        self.needed, self.max_model_len, self.fitting_len = needed, max_model_len, fitting_len


def _plan(config: EngineConfig, device: Device) -> MemoryPlan:
    needs = memory_needs(config, device)
    num_blocks = _num_blocks(needs, config, device)
    model_len, fits = needs.model.max_model_len, num_blocks * config.block_size
    if fits < needs.model.max_model_len:
        needs = memory_needs(_shortened(config, needs, device, num_blocks), device)
        num_blocks = _num_blocks(needs, config, device)
    plan = replace(_as_plan(needs, config, device, num_blocks), model_len=model_len)
    if plan.total > device.memory_bytes:
        raise _DoesNotFit(
            f"{plan.total / GIB:.2f} GiB are needed, {plan.kv_cache / GIB:.2f} GiB of them for the KV cache, and "
            f"{device.name} has {device.memory_bytes / GIB:.2f} GiB",
            plan.total,
            plan.max_model_len,
        )
    return plan


def _as_plan(needs: Needs, config: EngineConfig, device: Device, num_blocks: int) -> MemoryPlan:
    return MemoryPlan(
        weights=needs.weights,
        kv_bytes_per_token=needs.model.memory.kv_bytes_per_token,
        kv_blocks=num_blocks,
        block_size=config.block_size,
        workspace=needs.workspace,
        graphs=needs.graphs,
        context=device.used_bytes,
        max_model_len=needs.model.max_model_len,
        model_len=needs.model.max_model_len,
        device=device.name,
        device_bytes=device.memory_bytes,
        parts=needs.parts,
    )


def _shortened(config: EngineConfig, needs: Needs, device: Device, num_blocks: int) -> EngineConfig:
    """For a model whose longest context the KV cache does not hold."""
    fits = num_blocks * config.block_size
    if config.max_model_len is None:
        return replace(config, max_model_len=fits)
    wanted = -(-config.max_model_len // config.block_size)
    message = (
        f"max_model_len={config.max_model_len} needs {wanted} KV blocks of {config.block_size} tokens, and "
        f"{num_blocks} fit; nearest: {fits}"
    )
    raise _DoesNotFit(message, _as_plan(needs, config, device, wanted).total, config.max_model_len, fits)


# ---- the KV cache ---------------------------------------------------------------------------


def _num_blocks(needs: Needs, config: EngineConfig, device: Device) -> int:
    """KV blocks: as many as were asked for, else as many as fit and can be used."""
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    block_bytes = needs.model.memory.kv_bytes_per_token * config.block_size
    budget = _kv_budget(needs, config, device)
    fits = budget // block_bytes - 1  # block 0 is the padding's
    if fits < 1:
        least = _as_plan(needs, config, device, 1)
        raise _DoesNotFit(_too_little(least, config, device, budget), least.total, least.max_model_len)
    # the watermark keeps a little of the pool free, so a little more than every request's longest context
    usable = (config.max_num_seqs + 2) * (-(-needs.model.max_model_len // config.block_size) + 1)
    return int(min(fits, usable))


def _kv_budget(needs: Needs, config: EngineConfig, device: Device) -> int:
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    if device.kind == "cpu":
        return int(min(_CPU_KV_BYTES, _CPU_KV_SHARE * device.memory_bytes)) // config.tensor_parallel_size
    allowed = int(device.memory_bytes * config.gpu_memory_utilization)
    return allowed - device.used_bytes - needs.weights - needs.workspace - needs.graphs


def _too_little(least: MemoryPlan, config: EngineConfig, device: Device, budget: int) -> str:
    if config.kv_cache_memory_bytes is not None or device.kind == "cpu":
        return (
            f"the KV cache has room for {budget} bytes, and two blocks of {config.block_size} tokens need "
            f"{least.kv_cache}"
        )
    allowed = device.memory_bytes * config.gpu_memory_utilization
    return (
        f"{least.total / GIB:.2f} GiB are needed (weights {least.weights / GIB:.2f}, workspace "
        f"{least.workspace / GIB:.2f}, graphs {least.graphs / GIB:.2f}, in use before {least.context / GIB:.2f}) and "
        f"gpu_memory_utilization={config.gpu_memory_utilization} allows {allowed / GIB:.2f} of the "
        f"{device.memory_bytes / GIB:.2f} GiB of {device.name}"
    )


def _ways_out(config: EngineConfig, device: Device, error: _DoesNotFit) -> str:
    """Arguments with which it would fit, each alone; tried, not guessed."""
    if config.num_kv_blocks is not None or config.kv_cache_memory_bytes is not None or device.kind == "cpu":
        smallest = replace(config, num_kv_blocks=1, kv_cache_memory_bytes=None, max_model_len=config.block_size)
        if (least_bytes := _needed(smallest, device)) is None:
            return "max_model_len, num_kv_blocks and kv_cache_memory_bytes change it"
        return f"with the smallest KV cache a device of {math.ceil(10 * least_bytes / GIB) / 10} GiB would hold it"
    found = [] if error.fitting_len is None else [f"max_model_len={error.fitting_len}"]
    share = math.ceil(100 * error.needed / device.memory_bytes) / 100
    if config.gpu_memory_utilization < share <= 1.0 and _fits(replace(config, gpu_memory_utilization=share), device):
        found.append(f"gpu_memory_utilization={share}")
    for name, value in (
        ("max_model_len", error.max_model_len if error.fitting_len is None else 0),
        ("max_num_batched_tokens", config.resolve_num_batched_tokens(device.kind)),
        ("max_num_seqs", config.max_num_seqs),
    ):
        smaller = (value >> shift for shift in range(1, value.bit_length()) if value >> shift >= _LEAST_ADVICE)
        fitting = next((less for less in smaller if _fits(_with(config, name, less), device)), None)
        if fitting is not None:
            found.append(f"{name}={fitting}")
    if found:
        return f"{' or '.join(found)} would fit"
    least = math.ceil(10 * error.needed / config.gpu_memory_utilization / GIB) / 10
    return f"no argument makes it fit; a device of {least} GiB would hold it"


def _with(config: EngineConfig, name: str, value: int) -> EngineConfig:
    changed: dict[str, Any] = {name: value}
    return replace(config, **changed)


def _fits(config: EngineConfig, device: Device) -> bool:
    return _needed(config, device) is None


def _needed(config: EngineConfig, device: Device) -> int | None:
    """Bytes that a device must have, where this one has too few; None: it fits."""
    try:
        _plan(config, device)
    except _DoesNotFit as error:
        return error.needed
    return None
