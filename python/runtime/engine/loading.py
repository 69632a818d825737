"""From a config to a loaded model with a KV cache of the right size, and the scheduler that fits it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from runtime import _core
from runtime.basemodel import TpPartBaseModel, model_class_of
from runtime.config import EngineConfig
from runtime.engine.device import Device, probe_device
from runtime.engine.memory_needs import model_options, scheduler_config
from runtime.engine.memory_plan import MemoryPlan, plan_memory
from runtime.engine.memory_use import MemoryMeter
from runtime.engine.model_runner import ModelRunner
from runtime.engine.peers import Peers
from runtime.errors import CapacityError
from runtime.loader import read_config
from runtime.log import get_logger
from runtime.start_timer import StartTimer
from runtime.tokenizer import Tokenizer, read_eos_token_ids

logger = get_logger(__name__)

_ONE_THREAD_BYTES = 64 << 20
# operations a second of a prefill, and bytes a second between device and host: orders of magnitude, for _kv_costs
_FLOPS = {"cpu": 5e10, "cuda": 4e14}
_LINK_BYTES_PER_S = 2.5e10


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and what its folder says about text."""

    config: EngineConfig
    model: TpPartBaseModel
    tokenizer: Tokenizer | None
    eos_token_ids: list[int]
    plan: MemoryPlan
    meter: MemoryMeter
    peers: Peers
    timer: StartTimer

    @property
    def max_model_len(self) -> int:
        """Longest context in tokens, as far as the KV cache holds it."""
        return self.model.max_model_len

    @property
    def num_threads(self) -> int:
        """Of torch's operators, in the engine's thread. More than one only delays the operators of a small model."""
        if self.model.memory.weight_bytes < _ONE_THREAD_BYTES:
            return 1
        # other ranks were started with their share
        shared_by = self.model.world_size_ if self.model.tp_rank_ == 0 else 1
        return max(torch.get_num_threads() // shared_by, 1)

    @property
    def num_host_blocks(self) -> int:
        """KV blocks of the CPU tier, of which every rank holds its heads.

        Raises:
            CapacityError: cpu_kv_bytes does not hold one.
        """
        wanted, block_bytes = self.config.cpu_kv_bytes, _block_bytes(self.model) * self.model.world_size_
        if 0 < wanted < block_bytes:
            raise CapacityError(
                f"cpu_kv_bytes={wanted}: a block of {self.config.block_size} tokens needs {block_bytes} bytes",
                hint="raise cpu_kv_bytes, or 0: no CPU tier",
            )
        return wanted // block_bytes

    def make_scheduler(self, *, num_steps_in_flight: int, preempt_every: int) -> _core.Scheduler:
        """The scheduler over this model's KV blocks; from now the only one that gives them out."""
        config = self.config
        limits = scheduler_config(
            config,
            self.model,
            self.model.device.type,
            eos_token_ids=self.eos_token_ids,
            enable_prefix_caching=config.enable_prefix_caching,
            num_steps_in_flight=num_steps_in_flight,
            preempt_every=preempt_every,
            max_queued_requests=-1 if config.max_queued_requests is None else config.max_queued_requests,
            seed=config.seed,
            policy=config.scheduling_policy,
            admission=config.admission,
            eviction=config.eviction,
            num_host_blocks=self.num_host_blocks,
            **_kv_costs(self.model),
        )
        allocator = self.model.mem_manager.allocator
        assert allocator is not None, "rank 0 holds the allocator"
        scheduler = _core.Scheduler(limits, allocator)
        if config.event_log is not None:
            scheduler.record(os.fspath(config.event_log))
        return scheduler

    def make_runner(self, runner_class: type[ModelRunner], *, num_plan_buffers: int, plan_capacity: int) -> ModelRunner:
        """A runner of that class, at this config's limits; buffers as `ModelRunner` says."""
        return runner_class(
            self.model,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.resolve_num_batched_tokens(self.model.device.type),
            num_plan_buffers=num_plan_buffers,
            plan_capacity=plan_capacity,
            num_host_blocks=self.num_host_blocks,
            enforce_eager=self.config.enforce_eager,
        )

    def make_ready(self, runner: ModelRunner) -> list[dict[str, float]]:
        """Compiles, loads and captures what serving needs; returns once all ranks have, with the phases of each."""
        self.timer.enter("kernels")
        runner.warm_up()
        self.meter.mark("warm")
        self.timer.enter("graphs")
        runner.capture()
        self.meter.mark("ready")
        self.timer.enter("ranks")
        self.peers.told()
        return self.peers.gathered(self.timer.stop())


def load_model(config: EngineConfig, device: str, peers: Peers, timer: StartTimer) -> LoadedModel:
    """Plans the memory, then reads tokenizer and weights; what the small files say is refused before a weight is read.

    All ranks have as many KV blocks as fit on the rank with the least room.

    Raises:
        ConfigError, DeviceNotFoundError, ModelNotFoundError, ModelFormatError, CapacityError
    """
    timer.enter("tokenizer")
    model_class = model_class_of(config.model_dir)
    skips_tokenizer = config.skip_tokenizer_init or peers.rank > 0
    tokenizer = None if skips_tokenizer else _load_tokenizer(config, model_class)
    timer.enter("memory_plan")
    meter = MemoryMeter(probe_device(device))
    plan = _plan_together(config, meter.device, peers)
    with meter.guard(plan):
        model = model_class(
            peers.rank,
            peers.size,
            config.model_dir,
            plan.kv_blocks * config.block_size,
            tp_group=peers.tp_group,
            device=device,
            timer=timer,
            **{**model_options(config), "max_model_len": plan.max_model_len},
        )
    timer.enter("device_copy")  # what the device still has to do for the weights
    meter.mark("loaded")
    timer.enter("runner")
    eos_token_ids = [i for i in read_eos_token_ids(config.model_dir) if i < model.vocab_size]
    return LoadedModel(config, model, tokenizer, eos_token_ids, plan, meter, peers, timer)


def _load_tokenizer(config: EngineConfig, model_class: type[TpPartBaseModel]) -> Tokenizer:
    tokenizer = Tokenizer(config.tokenizer_dir)
    tokenizer.check_vocab_size(read_config(config.model_dir, model_class.config_defaults)["vocab_size"])
    return tokenizer


def _plan_together(config: EngineConfig, device: Device, peers: Peers) -> MemoryPlan:
    """This rank's plan, with as many KV blocks and as long a context as every rank has room for."""
    plan = plan_memory(config, device)
    least = peers.smallest(kv_blocks=plan.kv_blocks, max_model_len=plan.max_model_len)
    plan = replace(plan, kv_blocks=least["kv_blocks"], max_model_len=least["max_model_len"])
    if plan.max_model_len < plan.model_len and peers.rank == 0:
        logger.warning(
            "max_model_len is %d, not the model's %d: the KV cache holds no more", plan.max_model_len, plan.model_len
        )
    return plan


def _kv_costs(model: TpPartBaseModel) -> dict[str, Any]:
    """Seconds, at the rates above, that the scheduler weighs against each other: computing KV again, and copying it."""
    flops = _FLOPS[model.device.type]
    sizes = model.config
    attention = 4 * sizes["num_hidden_layers"] * sizes["hidden_size"]  # operations for each token of context
    return {
        "recompute_token_s": min(2 * model.memory.weight_bytes / model.dtype.itemsize / flops, 1.0),
        "recompute_context_s": min(attention / flops, 1e-5),
        "transfer_block_s": min(_block_bytes(model) / _LINK_BYTES_PER_S, 10.0),
    }


def _block_bytes(model: TpPartBaseModel) -> int:
    return int(model.memory.kv_bytes_per_token * model.block_size)
