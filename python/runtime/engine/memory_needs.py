"""What an engine allocates besides its KV cache, counted without a device.

What the engine allocates is allocated here too, by the same functions, on the meta device: the model, the rows, and
the tensors that the forward pass of the largest step makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from runtime import _core
from runtime.basemodel import GroupOfShapes, TpPartBaseModel, first_part_tokens, model_class_of
from runtime.config import EngineConfig
from runtime.engine.cuda_graphs import batch_buckets
from runtime.engine.device import Device, check_device
from runtime.engine.device_bytes import DeviceBytes
from runtime.engine.masks import device_bytes
from runtime.engine.warm_up import SMALL_TENSORS_BYTES
from runtime.kernels.attention_shapes import partials_size
from runtime.kernels.peer_memory import PeerMemory
from runtime.kernels.step_state import RowState, SampleWorkspace, StepInputs, StepOutputs
from runtime.kernels.tile_config import most_programs_per_sm
from runtime.parallel import copied_sums

# Estimates of what no tensor shows, and what the comparison at start-up checks.
_MODULE_BYTES = 160 << 20  # code that the driver loads as kernels are first launched, cuBLAS's included
# NCCL's buffers for one connection: 512 KiB, 4800 KiB and 4 MiB of its three protocols (computeBuffSizes in init.cc) in
# the driver's pieces of 2 MiB, and one such piece at the sender. A ring has a connection in each channel.
_NCCL_CONNECTION_BYTES = 12 << 20
_NCCL_CHANNELS = 24  # that it opens between GPUs behind NVLink switches
_GRAPH_BYTES_PER_LAYER = 64 << 10  # of one captured model, in the driver
_SAMPLER_GRAPH_BYTES = 128 << 10


@dataclass(frozen=True)
class Needs:
    """All but the KV cache.

    Attributes:
        model: on the meta device.
        parts: bytes of the workspace, by what takes them.
    """

    model: TpPartBaseModel
    parts: dict[str, int]
    graphs: int

    @property
    def weights(self) -> int:
        return self.model.memory.weight_bytes

    @property
    def workspace(self) -> int:
        return sum(self.parts.values())


def memory_needs(config: EngineConfig, device: Device) -> Needs:
    """Counts them for an engine on `device`.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError, DeviceNotFoundError: it cannot run there.
    """
    with DeviceBytes() as counted:
        model = meta_model(config, device)
    check_device(model, device)
    tables = max(counted.allocator.allocated - model.memory.weight_bytes - model.memory.kv_bytes, 0)
    parts = {"rows": _row_bytes(model, config, device), "tables": tables}
    parts["activations"] = _largest_step(model, config, device)
    if device.kind == "cpu":
        return Needs(model, parts, 0)
    parts |= {"sampler": _sampler_bytes(model, config), "attention": _attention_bytes(model, config, device)}
    parts["cublas"], parts["modules"] = _cublas_bytes(device), _MODULE_BYTES
    parts["small"] = SMALL_TENSORS_BYTES
    if (size := config.tensor_parallel_size) > 1:
        row_bytes = model.config["hidden_size"] * model.dtype.itemsize
        parts["nccl"] = _NCCL_CHANNELS * _NCCL_CONNECTION_BYTES
        parts["peers"] = PeerMemory.num_bytes(size, config.max_num_seqs, row_bytes)
        if config.overlap == "copy":
            rows = first_part_tokens(config.resolve_num_batched_tokens(device.kind))
            parts["copies"] = copied_sums.num_bytes(size, rows, row_bytes)
    return Needs(model, parts, 0 if config.enforce_eager else _graph_bytes(model, config))


def meta_model(config: EngineConfig, device: Device) -> TpPartBaseModel:
    """One rank's part of the model without its weights; everything its folder says wrong is refused here."""
    size = config.tensor_parallel_size
    model = model_class_of(config.model_dir)(
        0,
        size,
        config.model_dir,
        config.block_size,
        tp_group=GroupOfShapes(size, overlaps=size > 1 and config.overlap != "none"),
        device="meta",
        **model_options(config),
    )
    if device.kind == "cpu" and config.dtype == "auto" and model.dtype is torch.float16:
        return meta_model(replace(config, dtype="float32"), device)  # as a model on the CPU chooses
    return model


def model_options(config: EngineConfig) -> dict[str, Any]:
    """Keyword arguments of the model, but its device."""
    return {
        "block_size": config.block_size,
        "dtype": config.dtype,
        "load_format": config.load_format,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "deterministic": config.deterministic,
        "seed": config.seed,
    }


def scheduler_config(
    config: EngineConfig, model: TpPartBaseModel, device_kind: str, **options: Any
) -> _core.SchedulerConfig:
    return _core.SchedulerConfig(
        config.max_num_seqs,
        config.resolve_num_batched_tokens(device_kind),
        config.block_size,
        model.max_model_len,
        model.vocab_size,
        **options,
    )


def _row_bytes(model: TpPartBaseModel, config: EngineConfig, device: Device) -> int:
    """Row state, step inputs and outputs, and the plan on the device."""
    rows, seqs = _rows(model, config), config.max_num_seqs
    tokens = config.resolve_num_batched_tokens(device.kind)
    inputs = StepInputs.allocate(max_num_seqs=seqs, max_num_batched_tokens=tokens, device="meta")
    outputs = StepOutputs.allocate(max_num_seqs=seqs, device="meta")
    limits = scheduler_config(config, model, device.kind)
    plan_words = _core.Scheduler(limits, _core.BlockAllocator(1)).plan_capacity
    masks = device_bytes(seqs + 1)
    return rows.num_bytes + inputs.num_bytes + outputs.num_bytes + masks + 4 * plan_words


def _rows(model: TpPartBaseModel, config: EngineConfig) -> RowState:
    return RowState.allocate(
        max_num_seqs=config.max_num_seqs,
        max_model_len=model.max_model_len,
        block_size=model.block_size,
        vocab_size=model.vocab_size,
        device="meta",
    )


def _sampler_bytes(model: TpPartBaseModel, config: EngineConfig) -> int:
    return SampleWorkspace.allocate(
        max_num_seqs=config.max_num_seqs, vocab_size=model.vocab_size, device="meta"
    ).num_bytes


def _attention_bytes(model: TpPartBaseModel, config: EngineConfig, device: Device) -> int:
    return partials_size(
        config.max_num_seqs,
        model.tp_q_head_num_,
        model.tp_k_head_num_,
        model.head_dim_,
        max_len=model.max_model_len,
        num_programs=most_programs_per_sm() * device.num_sms,
        deterministic=model.deterministic,
    ).num_bytes


def _cublas_bytes(device: Device) -> int:
    """The workspace that torch gives cuBLAS: getChosenWorkspaceSize in its CublasHandlePool.cpp."""
    return 32 << 20 if device.capability >= (9, 0) else (8 << 20) + (128 << 10)


def _largest_step(model: TpPartBaseModel, config: EngineConfig, device: Device) -> int:
    tokens = config.resolve_num_batched_tokens(device.kind)
    return step_bytes(model, min(config.max_num_seqs, tokens), tokens, is_prefill=True)


def _graph_bytes(model: TpPartBaseModel, config: EngineConfig) -> int:
    """One pool that all graphs share, and what the driver keeps of each."""
    buckets = batch_buckets(config.max_num_seqs)
    pool = step_bytes(model, config.max_num_seqs, config.max_num_seqs, is_prefill=False)
    per_bucket = _GRAPH_BYTES_PER_LAYER * model.layers_num + 2 * _SAMPLER_GRAPH_BYTES
    return pool + len(buckets) * per_bucket


def step_bytes(model: TpPartBaseModel, num_rows: int, num_tokens: int, *, is_prefill: bool) -> int:
    """Bytes that torch's allocator reserves for the tensors of one step of a model on meta, logits included."""
    counted = DeviceBytes()
    run_step(model, num_rows, num_tokens, counted, is_prefill=is_prefill)
    return counted.allocator.reserved


def run_step(model: TpPartBaseModel, num_rows: int, num_tokens: int, counted: DeviceBytes, *, is_prefill: bool) -> None:
    """The forward pass of a step of a model on meta; `counted` sees its tensors, but not the step inputs."""

    def ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    input_ids = ints(num_tokens)
    fields = {
        "batch_size": num_rows,
        "total_token_num": num_tokens,
        "max_len_in_batch": model.max_model_len,
        "max_new_tokens_in_batch": num_tokens - num_rows + 1,
        "is_prefill": is_prefill,
        "b_loc": ints(num_rows, 1),
        "b_row": ints(num_rows),
        "b_start_loc": ints(num_rows + 1),
        "b_seq_len": ints(num_rows),
        "position_ids": ints(num_tokens),
        "slot_mapping": ints(num_tokens, dtype=torch.int64),
        # given, because torch's subtraction on meta imports its compiler, which takes seconds
        "logits_index": ints(num_rows, dtype=torch.int64) if is_prefill else None,
    }
    with counted:
        model.run(input_ids, model.make_infer_state(input_ids, **fields))
