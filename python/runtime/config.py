"""What an engine is built from. The arguments of `LLM` are the fields of `EngineConfig`."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, did_you_mean, shorten
from runtime.log import require_level

BUILTIN_MODEL = Path(__file__).parent / "assets" / "builtin"

BUILTIN_LINE = (
    "built-in model: a tiny Llama trained to add, subtract, reverse and sort (try '12+35='); "
    "give a model folder for anything else"
)

_DEFAULT_BLOCK_SIZE = {"cpu": 16, "cuda": 64}
_DEFAULT_NUM_BATCHED_TOKENS = {"cpu": 256, "cuda": 8192}
_DEFAULT_STEP_TIMEOUT = {"cpu": 300.0, "cuda": 10.0}  # seconds
_MAX_STEP_TIMEOUT = 86400
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "load_format": ("auto", "safetensors", "dummy"),
    "scheduling_policy": ("fcfs", "priority", "fair"),
    "admission": ("past_future", "max_tokens", "none"),
    "eviction": ("lru", "cost"),
    "all_reduce_overlap": ("none", "nccl", "copy"),
}
_FLAGS = ("skip_tokenizer_init", "enable_prefix_caching", "deterministic", "enforce_eager")
# inclusive bounds of the integer arguments
_BOUNDS: dict[str, tuple[int, int]] = {
    "tensor_parallel_size": (1, 64),
    "max_model_len": (1, 1 << 24),
    "max_num_seqs": (1, 1 << 14),
    "max_num_batched_tokens": (1, 1 << 20),
    "block_size": (1, 1 << 10),
    "kv_cache_memory_bytes": (1, 1 << 50),
    "num_kv_blocks": (1, (1 << 31) - 2),
    "cpu_kv_bytes": (0, 1 << 50),
    "seed": (0, (1 << 63) - 1),
    "max_queued_requests": (0, (1 << 31) - 1),
}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Validated arguments of one engine; None means "derived from the model or the device".

    Args:
        model: folder with config.json, safetensors and tokenizer.json; None: the built-in model.
        tokenizer: folder of the tokenizer, if not the model's.
        skip_tokenizer_init: no tokenizer at all; prompts are token ids, outputs have no text.
        dtype: of weights and activations; "auto" is the checkpoint's.
        device: "cpu" or "cuda"; "auto" is CUDA where torch sees a device.
        load_format: "dummy" makes seeded random weights from config.json alone.
        tensor_parallel_size: number of processes (ranks) that hold the model together, each with a device of its own.
        max_model_len: most tokens of prompt and output together.
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: most tokens in one step; longer prompts are computed in chunks.
        block_size: tokens in one KV block, a power of two; None: 64 on CUDA, 16 on a CPU.
        gpu_memory_utilization: share of the device's memory that may be in use, other processes' included.
        kv_cache_memory_bytes, num_kv_blocks: size of the KV cache of each rank, in bytes or in blocks; at most one of
            them.
        enable_prefix_caching: prompts share the KV blocks of prefixes that were computed before.
        scheduling_policy: who goes first: "fcfs" by arrival, "priority" by the requests' priority with ageing, "fair"
            tenants in turn, by the tokens each was served.
        admission: which requests start: "past_future" those that fit at the peak predicted from finished outputs,
            "max_tokens" those that fit at their longest, "none" those that fit now.
        cpu_kv_bytes: host memory for KV blocks that leave the devices of all ranks; 0: they are computed again.
        eviction: which cached KV block is given up first, the least recently used one ("lru") or the one that is worth
            least, recompute time x uses ("cost").
        deterministic: the same tokens and logprobs, bit for bit, however requests are batched.
        seed: base of the seeds of requests that bring none.
        enforce_eager: no CUDA graphs.
        step_timeout: seconds after which a step counts as hung and the engine stops.
        max_queued_requests: most waiting requests before `submit` refuses more; None: no limit.
        all_reduce_overlap: how the sums over the ranks of a large step go on while other tokens are computed: "none",
            "nccl" by a kernel beside the others, or "copy" by the devices' copy engines. Not with deterministic=True.
        event_log: file to record the scheduler's events and decisions in, for `runtime simulate --replay`.
        log_level: of the package's messages on standard error: debug, info, warning, error or critical.
    """

    model: str | os.PathLike[str] | None = None
    tokenizer: str | os.PathLike[str] | None = None
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    device: str = "auto"
    load_format: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int = None  # type: ignore[assignment]  # until `for_device`
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    admission: str = "past_future"
    cpu_kv_bytes: int = 0
    eviction: str = "lru"
    deterministic: bool = False
    seed: int = 0
    enforce_eager: bool = False
    step_timeout: float | None = None
    max_queued_requests: int | None = None
    all_reduce_overlap: str = "none"
    event_log: str | os.PathLike[str] | None = None
    log_level: str | None = None

    def __post_init__(self) -> None:
        self._check_paths()
        for name, choices in _CHOICES.items():
            _require_choice(name, getattr(self, name), choices)
        for name, (low, high) in _BOUNDS.items():
            _require_int(name, getattr(self, name), low, high, optional=type(self).__dict__.get(name) is None)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={shorten(getattr(self, name))}: must be True or False")
        if self.log_level is not None:
            require_level(self.log_level)
        self._check_block_size()
        self._check_share()
        self._check_step_timeout()
        self._check_together()

    def _check_paths(self) -> None:
        for name, what in (("model", "folder"), ("tokenizer", "folder"), ("event_log", "file")):
            given = getattr(self, name)
            if not isinstance(given, (str, os.PathLike, type(None))) or given == "":
                raise ConfigError(f"{name}={shorten(given)}: must be the path of a {what}")

    def _check_block_size(self) -> None:
        if self.block_size is not None and self.block_size & (self.block_size - 1):
            nearest = 1 << (self.block_size.bit_length() - 1)
            raise ConfigError(f"block_size={self.block_size}: must be a power of two; nearest: {nearest}")

    def _check_share(self) -> None:
        share = self.gpu_memory_utilization
        if not _is_number(share) or not 0.0 < share <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization={shorten(share)}: must be a number above 0 and at most 1; default: 0.9"
            )

    def _check_step_timeout(self) -> None:
        given = self.step_timeout
        if given is None or (_is_number(given) and 0 < given <= _MAX_STEP_TIMEOUT):
            return
        defaults = " and ".join(f"{seconds:g} on {device}" for device, seconds in _DEFAULT_STEP_TIMEOUT.items())
        raise ConfigError(
            f"step_timeout={shorten(given)}: must be a positive number of seconds up to {_MAX_STEP_TIMEOUT}; "
            f"default: {defaults}"
        )

    def _check_together(self) -> None:
        """Arguments that exclude each other."""
        if self.kv_cache_memory_bytes is not None and self.num_kv_blocks is not None:
            raise ConfigError("kv_cache_memory_bytes and num_kv_blocks both size the KV cache: give one of them")
        if self.cpu_kv_bytes and not self.enable_prefix_caching:
            raise ConfigError(
                f"cpu_kv_bytes={self.cpu_kv_bytes}: must be 0 without a prefix cache, which finds what is there",
                hint="enable_prefix_caching=True",
            )

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> EngineConfig:
        """Builds a config; an unknown name is an error with the nearest ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in arguments:
            if name not in known:
                raise ConfigError(f"unknown argument {name!r}{did_you_mean(name, known)}")
        return cls(**arguments)

    @property
    def is_builtin(self) -> bool:
        """No model was named."""
        return self.model is None

    @property
    def model_dir(self) -> Path:
        """The model's folder, the built-in one where none was named."""
        return BUILTIN_MODEL if self.model is None else Path(self.model)

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer's folder."""
        return self.model_dir if self.tokenizer is None else Path(self.tokenizer)

    def for_device(self, kind: str) -> EngineConfig:
        """With what depends on "cpu" or "cuda" decided."""
        return dataclasses.replace(self, block_size=self.block_size or _DEFAULT_BLOCK_SIZE[kind])

    @property
    def overlap(self) -> str:
        """How sums over the ranks are overlapped, as a TpGroup takes it."""
        return "none" if self.deterministic else self.all_reduce_overlap

    def resolve_num_batched_tokens(self, device: str) -> int:
        """The limit on a "cpu" or "cuda" device."""
        return self.max_num_batched_tokens or _DEFAULT_NUM_BATCHED_TOKENS[device]

    def resolve_step_timeout(self, device: str) -> float:
        """Seconds on a "cpu" or "cuda" device."""
        return self.step_timeout or _DEFAULT_STEP_TIMEOUT[device]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name}={shorten(value)}: must be one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
        )


def _require_int(name: str, value: object, low: int, high: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={shorten(value)}: must be an integer between {low} and {high}")
    if not low <= value <= high:
        raise ConfigError(f"{name}={value}: must be between {low} and {high}; nearest: {min(max(value, low), high)}")
