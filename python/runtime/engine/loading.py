"""From a config to a loaded model with a KV cache of the right size, and the scheduler that fits it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from runtime import _core
from runtime.basemodel import TpPartBaseModel, model_class_of
from runtime.config import EngineConfig
from runtime.engine.model_runner import ModelRunner
from runtime.errors import CapacityError
from runtime.log import get_logger
from runtime.tokenizer import Tokenizer, read_eos_token_ids

logger = get_logger(__name__)

# share of a CPU's memory, and most bytes, that the KV cache takes when nothing is said; untouched pages cost nothing
_CPU_KV_SHARE = 0.25
_CPU_KV_BYTES = 4 << 30
# what a step needs on CUDA beside weights and KV cache: library handles, graphs, fragmentation
_CUDA_RESERVE_BYTES = 1 << 30
_SAMPLER_BYTES_PER_LOGIT = 9


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and what its folder says about text."""

    config: EngineConfig
    model: TpPartBaseModel
    tokenizer: Tokenizer | None
    eos_token_ids: list[int]
    max_num_batched_tokens: int

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len

    def make_scheduler(self, *, num_steps_in_flight: int, preempt_every: int) -> _core.Scheduler:
        """The scheduler over this model's KV blocks; from now the only one that gives them out."""
        config = self.config
        limits = _core.SchedulerConfig(
            config.max_num_seqs,
            self.max_num_batched_tokens,
            config.block_size,
            self.max_model_len,
            self.model.vocab_size,
            eos_token_ids=self.eos_token_ids,
            enable_prefix_caching=config.enable_prefix_caching,
            num_steps_in_flight=num_steps_in_flight,
            preempt_every=preempt_every,
            max_queued_requests=-1 if config.max_queued_requests is None else config.max_queued_requests,
            seed=config.seed,
        )
        allocator = self.model.mem_manager.allocator
        assert allocator is not None, "rank 0 holds the allocator"
        scheduler = _core.Scheduler(limits, allocator)
        if config.event_log is not None:
            scheduler.record(os.fspath(config.event_log))
        return scheduler

    def make_runner(self, runner_class: type[ModelRunner], *, num_plan_buffers: int, plan_capacity: int) -> ModelRunner:
        return runner_class(
            self.model,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            num_plan_buffers=num_plan_buffers,
            plan_capacity=plan_capacity,
            enforce_eager=self.config.enforce_eager,
        )


def load_model(config: EngineConfig, device: str) -> LoadedModel:
    """Reads tokenizer and weights; what the small files say is refused before a weight is read.

    Raises:
        ConfigError, ModelNotFoundError, ModelFormatError, CapacityError
    """
    model_class = model_class_of(config.model_dir)
    max_num_batched_tokens = config.resolve_num_batched_tokens(device)
    tokenizer = None if config.skip_tokenizer_init else Tokenizer(config.tokenizer_dir)
    sized = _sized(model_class, config, tokenizer, max_num_batched_tokens)
    model = sized(
        0,
        1,
        config.model_dir,
        config.block_size,  # decided by _sized, once the weights are there
        block_size=config.block_size,
        dtype=config.dtype,
        device=device,
        load_format=config.load_format,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        deterministic=config.deterministic,
        seed=config.seed,
    )
    eos_token_ids = [i for i in read_eos_token_ids(config.model_dir) if i < model.vocab_size]
    return LoadedModel(config, model, tokenizer, eos_token_ids, max_num_batched_tokens)


def _sized(
    model_class: type[TpPartBaseModel], config: EngineConfig, tokenizer: Tokenizer | None, max_num_batched_tokens: int
) -> type[Any]:
    """The class with two hooks more: it must fit the tokenizer, and its KV cache takes what the weights have left."""

    class Sized(model_class):  # type: ignore[misc, valid-type]
        def _verify_params(self) -> None:
            super()._verify_params()
            if tokenizer is not None:
                tokenizer.check_vocab_size(self.config["vocab_size"])

        def _init_mem_manager(self) -> None:
            num_blocks = _choose_num_blocks(self, config, max_num_batched_tokens)
            self.max_model_len = _fit_max_model_len(self, config, num_blocks)
            self.max_total_token_num = num_blocks * config.block_size
            super()._init_mem_manager()

    Sized.__name__ = model_class.__name__
    return Sized


def _choose_num_blocks(model: TpPartBaseModel, config: EngineConfig, max_num_batched_tokens: int) -> int:
    """KV blocks: as many as were asked for, else as many as fit and can be used."""
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    block_bytes = model.memory.kv_bytes_per_token * config.block_size
    if config.kv_cache_memory_bytes is not None:
        budget, flag = config.kv_cache_memory_bytes, "kv_cache_memory_bytes"
    elif model.device.type == "cuda":
        budget, flag = _cuda_budget(model, config, max_num_batched_tokens), "gpu_memory_utilization"
    else:
        budget, flag = int(min(_CPU_KV_BYTES, _CPU_KV_SHARE * _host_memory_bytes())), "kv_cache_memory_bytes"
    # block 0 is the padding's
    fits = budget // block_bytes - 1
    if fits < 1:
        raise CapacityError(
            f"the KV cache has room for {max(budget, 0)} bytes, and two blocks of {config.block_size} tokens need "
            f"{2 * block_bytes}",
            hint=f"raise {flag}, or lower block_size",
        )
    # the watermark keeps a little of the pool free, so a little more than every request's longest context
    usable = (config.max_num_seqs + 2) * (-(-model.max_model_len // config.block_size) + 1)
    return int(min(fits, usable))


def _cuda_budget(model: TpPartBaseModel, config: EngineConfig, max_num_batched_tokens: int) -> int:
    free, total = torch.cuda.mem_get_info(model.device)
    in_use = total - free
    return int(total * config.gpu_memory_utilization) - in_use - _workspace_bytes(model, config, max_num_batched_tokens)


def _workspace_bytes(model: TpPartBaseModel, config: EngineConfig, max_num_batched_tokens: int) -> int:
    """Activations of the largest step, its logits and what sampling makes of them, the rows' token ids, a reserve."""
    sizes = model.config
    width: int = 6 * sizes["hidden_size"] + 3 * (sizes.get("intermediate_size") or 4 * sizes["hidden_size"])
    activations = max_num_batched_tokens * width * model.dtype.itemsize
    rows = config.max_num_seqs + 1
    logits: int = rows * sizes["vocab_size"] * (_SAMPLER_BYTES_PER_LOGIT + 2 * model.dtype.itemsize)
    return activations + logits + rows * model.max_model_len * 4 + _CUDA_RESERVE_BYTES


def _fit_max_model_len(model: TpPartBaseModel, config: EngineConfig, num_blocks: int) -> int:
    """The longest context that one request can have in this pool."""
    fits = num_blocks * config.block_size
    if model.max_model_len <= fits:
        return model.max_model_len
    if config.max_model_len is not None:
        raise CapacityError(
            f"max_model_len={config.max_model_len} needs {-(-config.max_model_len // config.block_size)} KV blocks of "
            f"{config.block_size} tokens, and {num_blocks} fit; nearest: {fits}",
            hint="max_model_len, num_kv_blocks, kv_cache_memory_bytes and gpu_memory_utilization change it",
        )
    logger.warning("max_model_len is %d, not the model's %d: the KV cache holds no more", fits, model.max_model_len)
    return fits


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
