"""TpPartBaseModel: one rank's part of a model, built in eight steps that a family may override."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .._core import BlockAllocator
from ..errors import ConfigError, ModelFormatError, shorten
from ..loader import Checkpoint, DummyCheckpoint, ModelConfig, check_model_folder, read_config
from ..parallel import TpGroup
from ..start_timer import StartTimer
from .infer import PostLayerInfer, PostLayerInferTpl, PreLayerInfer, PreLayerInferTpl, TransformerLayerInfer
from .infer_state import InferStateInfo
from .mem_manager import MemManager
from .token_parts import is_worth_parts, run_in_parts
from .weights import (
    BaseLayerWeight,
    Placement,
    PreAndPostLayerWeight,
    TransformerLayerWeight,
    dummy_tensors,
    verify_load,
)
from .weights.linear import kv_head_share
from .weights.param import WeightSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOAD_WAYS = ("HF",)
LOAD_FORMATS = ("auto", "safetensors", "dummy")
MODES: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelMemory:
    """Bytes on this rank's device, known from config and declarations alone."""

    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int


class TpPartBaseModel:
    """One rank's part of a model.

    Args:
        tp_rank, world_size: this rank and the number of ranks.
        weight_dir: the model folder.
        max_total_token_num: tokens that the KV cache holds, rounded down to whole blocks.
        load_way: layout of the checkpoint; "HF" only.
        mode: names of variants; none exists yet.
        tp_group: the collectives; needed when world_size > 1.
        block_size: tokens of a KV block, a power of two.
        dtype: of weights, activations and KV cache: "auto" (the checkpoint's), a name or a torch.dtype.
        device: a torch device. On "meta" the model is checked against the folder and counted, without reading a weight.
        load_format: "auto" and "safetensors" read the folder; "dummy" makes random weights from config.json alone.
        max_model_len: longest context; None: what the checkpoint was made for.
        max_num_seqs: request slots of the block tables that `new_b_loc` makes.
        deterministic: a row's result depends on its own tokens only, bit for bit.
        seed: of dummy weights.
        timer: of the start that this is part of.

    Attributes:
        config: config.json under the names of `loader.read_config`.
        memory: ModelMemory.
        mem_manager: the KV tensors.

    Raises:
        ConfigError: an argument that cannot work.
        ModelNotFoundError, ModelFormatError: the folder or its files are wrong.
    """

    pre_and_post_weight_class: ClassVar[type[PreAndPostLayerWeight]]
    transformer_weight_class: ClassVar[type[TransformerLayerWeight]]
    pre_layer_infer_class: ClassVar[type[PreLayerInfer]] = PreLayerInferTpl
    post_layer_infer_class: ClassVar[type[PostLayerInfer]] = PostLayerInferTpl
    transformer_layer_infer_class: ClassVar[type[TransformerLayerInfer]]
    infer_state_class: ClassVar[type[InferStateInfo]] = InferStateInfo

    # What the family means by an entry of config.json that is absent or null.
    config_defaults: ClassVar[dict[str, Any]] = {}
    # A prefix that some of the family's checkpoints leave away in all tensor names.
    optional_prefix: ClassVar[str] = ""
    # Names (fnmatch patterns) of tensors that the family's checkpoints carry without need.
    ignored_tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        tp_rank: int,
        world_size: int,
        weight_dir: str | Path,
        max_total_token_num: int,
        load_way: str = "HF",
        mode: Sequence[str] = (),
        *,
        tp_group: TpGroup | None = None,
        block_size: int = 16,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        load_format: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        deterministic: bool = False,
        seed: int = 0,
        timer: StartTimer | None = None,
    ) -> None:
        self.timer = timer or StartTimer("config")
        self.tp_rank_, self.world_size_ = tp_rank, world_size
        self.weight_dir_ = check_model_folder(weight_dir)
        self.max_total_token_num, self.block_size, self.max_num_seqs = max_total_token_num, block_size, max_num_seqs
        self.load_way, self.load_format = load_way, load_format
        self.mode = [mode] if isinstance(mode, str) else list(mode)
        self.device, self.deterministic, self.seed = torch.device(device), deterministic, seed
        self._given_dtype, self._given_max_model_len, self._given_tp_group = dtype, max_model_len, tp_group
        self._init_config()
        self._verify_must()
        self._verify_params()
        self._init_weights()
        self._init_mem_manager()
        self.timer.enter("tables")
        self._init_infer_layer()
        self._init_some_value()
        self._init_custom()

    # The eight steps

    def _init_config(self) -> None:
        """Reads config.json, gives every quantity one name."""
        self.config: ModelConfig = read_config(self.weight_dir_, self.config_defaults)

    @final
    def _verify_must(self) -> None:
        """The attention heads divide by the ranks."""
        heads = self.config["num_attention_heads"]
        if self.world_size_ < 1 or not 0 <= self.tp_rank_ < self.world_size_:
            raise ConfigError(f"tp_rank={self.tp_rank_} is not one of world_size={self.world_size_} ranks")
        if heads % self.world_size_:
            nearest = max(size for size in range(1, self.world_size_) if heads % size == 0)
            raise ConfigError(
                f"num_attention_heads={heads} does not divide by world_size={self.world_size_}; nearest: {nearest}",
                hint="tensor_parallel_size sets it",
            )

    def _verify_params(self) -> None:
        """Everything else that can be refused before weights are read."""
        self._verify_choice("load_way", self.load_way, LOAD_WAYS)
        for mode in self.mode:
            self._verify_choice("mode", mode, MODES)
        self._verify_choice("load_format", self.load_format, LOAD_FORMATS)
        if self.config.get("quantization_config"):
            raise ModelFormatError("config.json: quantization_config: quantised checkpoints are not supported")
        self._verify_kv_cache()
        self.dtype = self._choose_dtype()
        self.max_model_len = self._choose_max_model_len()
        self.tp_group = self._choose_tp_group()

    def _init_weights(self) -> None:
        """One PreAndPostLayerWeight and a TransformerLayerWeight per layer: declared, compared, loaded."""
        self.timer.enter("weights")
        placement = Placement(self.tp_group, self.dtype, self.device, self.deterministic)
        self.pre_post_weight = self.pre_and_post_weight_class(placement, self.config)
        self.trans_layers_weight = [
            self.transformer_weight_class(placement, self.config, i) for i in range(self.config["num_hidden_layers"])
        ]
        layers: list[BaseLayerWeight] = [self.pre_post_weight, *self.trans_layers_weight]
        self._weight_bytes = sum(layer.num_bytes for layer in layers)
        source: WeightSource
        if self.load_format == "dummy":
            source = DummyCheckpoint(dummy_tensors(layers), self.seed)
        else:
            source = Checkpoint(self.weight_dir_, optional_prefix=self.optional_prefix, timer=self.timer)
        # The headers say all there is to compare, so a wrong checkpoint is refused before a weight is read.
        verify_load(layers, source, self.ignored_tensors)
        for layer in layers:
            layer.load(source)

    def _init_mem_manager(self) -> None:
        """The KV tensors and, on rank 0, the allocator of their blocks; room for the sums of a decode step."""
        self.timer.enter("kv_cache")
        num_blocks = self.max_total_token_num // self.block_size
        shape = (self.config["num_hidden_layers"], 2, num_blocks + 1, self._kv_heads, self.block_size)
        kv_cache = torch.zeros((*shape, self.config["head_dim"]), dtype=self.dtype, device=self.device)
        self.mem_manager = MemManager(kv_cache, BlockAllocator(num_blocks) if self.tp_rank_ == 0 else None)
        self.tp_group.reserve(self.max_num_seqs, self.config["hidden_size"] * self.dtype.itemsize)

    def _init_infer_layer(self) -> None:
        self.pre_infer = self.pre_layer_infer_class(self.config)
        self.post_infer = self.post_layer_infer_class(self.config)
        self.layers_infer = [
            self.transformer_layer_infer_class(self.config, i) for i in range(self.config["num_hidden_layers"])
        ]

    def _init_some_value(self) -> None:
        self.head_dim_: int = self.config["head_dim"]
        self.layers_num: int = self.config["num_hidden_layers"]
        self.vocab_size: int = self.config["vocab_size"]
        self.tp_q_head_num_: int = self.config["num_attention_heads"] // self.world_size_
        self.tp_k_head_num_ = self.tp_v_head_num_ = self._kv_heads

    def _init_custom(self) -> None:
        """What one family needs, such as rotary tables."""

    # Choices

    @staticmethod
    def _verify_choice(name: str, value: str, supported: Sequence[str]) -> None:
        if value not in supported:
            raise ConfigError(f"{name} {shorten(value)} is not supported; supported: {', '.join(supported) or 'none'}")

    def _verify_kv_cache(self) -> None:
        block_size, num_tokens = self.block_size, self.max_total_token_num
        if block_size < 1 or block_size & (block_size - 1):
            nearest = 1 << max(block_size, 1).bit_length() - 1
            raise ConfigError(f"block_size={block_size} is not a power of two; nearest: {nearest}")
        if num_tokens < block_size:
            raise ConfigError(
                f"max_total_token_num={num_tokens} is less than one block of {block_size} tokens; nearest: {block_size}"
            )

    def _require_entry(self, name: str, *supported: Any) -> None:
        """Refuses a config.json whose entry `name` asks for what the family's code here does not do."""
        if self.config.get(name) not in supported:
            raise ModelFormatError(
                f"config.json: {name}={shorten(self.config[name])} is not supported; supported: {supported[-1]!r}"
            )

    def _choose_dtype(self) -> torch.dtype:
        given = self._given_dtype
        name = str(given).removeprefix("torch.")
        if name == "auto":
            name = str(self.config.get("dtype") or "float32").removeprefix("torch.")
            # torch's CPU kernels have no fast float16.
            if self.device.type == "cpu" and name == "float16":
                name = "float32"
        self._verify_choice("dtype", name, tuple(DTYPES))
        return DTYPES[name]

    def _longest_context(self) -> int | None:
        """Tokens that the checkpoint's positions are meant for; None: any number."""
        limit: int | None = self.config.get("max_position_embeddings")
        return limit

    def _choose_max_model_len(self) -> int:
        given, limit = self._given_max_model_len, self._longest_context()
        if given is None:
            default: int = self.config.get("max_position_embeddings") or 2048
            return default
        if given < 1 or (limit is not None and given > limit):
            raise ConfigError(
                f"max_model_len={given}: from 1 to {limit or 'any number'} is possible; nearest: {limit or 1}"
            )
        return given

    def _choose_tp_group(self) -> TpGroup:
        group = self._given_tp_group
        if group is None and self.world_size_ > 1:
            raise ConfigError(f"world_size={self.world_size_} needs a tp_group, the collectives over the ranks")
        group = group or TpGroup()
        if (group.rank, group.size) != (self.tp_rank_, self.world_size_):
            raise ConfigError(
                f"tp_group is rank {group.rank} of {group.size}, the model rank {self.tp_rank_} of {self.world_size_}"
            )
        return group

    # Sizes

    @property
    def _kv_heads(self) -> int:
        return kv_head_share(self.config["num_key_value_heads"], self.tp_group)[1]

    @property
    def memory(self) -> ModelMemory:
        """What this rank holds, in bytes."""
        config = self.config
        per_token = 2 * config["num_hidden_layers"] * self._kv_heads * config["head_dim"] * self.dtype.itemsize
        num_blocks = self.max_total_token_num // self.block_size
        return ModelMemory(self._weight_bytes, per_token, per_token * self.block_size * (num_blocks + 1))

    # Running

    def make_infer_state(self, input_ids: Tensor, **fields: Any) -> InferStateInfo:
        """The step with the family's extra state; `fields`: those of InferStateInfo but what the model itself knows."""
        state = self.infer_state_class(mem_manager=self.mem_manager, deterministic=self.deterministic, **fields)
        self.init_extra_state(state, input_ids)
        return state

    def init_extra_state(self, state: InferStateInfo, input_ids: Tensor) -> None:
        """The family's extra state, of a step or of the part of it whose tokens these are."""
        state.init_some_extra_state(
            self,
            state.batch_size,
            state.total_token_num,
            state.max_len_in_batch,
            input_ids,
            state.b_loc,
            state.b_start_loc,
            state.b_seq_len,
            state.is_prefill,
        )

    @torch.inference_mode()
    def run(self, input_ids: Tensor, infer_state: InferStateInfo) -> Tensor:
        """Logits [n, vocab_size] in the model's dtype of a prepared step.

        Makes no tensor on the host and never waits for the device; a decode step can be captured in a CUDA graph.

        Args:
            input_ids: int32 [new tokens].
            infer_state: of `make_infer_state`.
        """
        phase = "context_forward" if infer_state.is_prefill else "token_forward"
        stream = getattr(self.pre_infer, phase)(input_ids, infer_state, self.pre_post_weight)
        if is_worth_parts(self, infer_state):
            stream = run_in_parts(self, stream, input_ids, infer_state)
        else:
            for layer, weight in zip(self.layers_infer, self.trans_layers_weight):
                stream = getattr(layer, phase)(stream, infer_state, weight)
        logits: Tensor = getattr(self.post_infer, phase)(stream, infer_state, self.pre_post_weight)
        return logits

    def new_b_loc(self) -> Tensor:
        """An empty block table for `forward`, int32 [max_num_seqs + 1, blocks of max_model_len]."""
        return torch.zeros(
            self.max_num_seqs + 1, -(-self.max_model_len // self.block_size), dtype=torch.int32, device=self.device
        )

    @torch.inference_mode()
    def forward(
        self,
        batch_size: int,
        total_token_num: int,
        max_len_in_batch: int,
        input_ids: Tensor,
        b_loc: Tensor,
        b_start_loc: Tensor,
        b_seq_len: Tensor,
        is_prefill: bool,
    ) -> Tensor:
        """Logits, float32 [batch, vocab_size], of each row's last token: the model without an engine.

        The caller fills `b_loc`, one row a batch row; `mem_manager.extend` gives out blocks.

        Args:
            batch_size, total_token_num, max_len_in_batch: as in InferStateInfo.
            input_ids: the new tokens, row after row. Decode: one a row.
            b_loc: int32 [rows, blocks], KV blocks of each row.
            b_start_loc: [batch], first position of each row in input_ids; a row ends where the next one starts. Unused
                in decode.
            b_seq_len: [batch], context length, cached and new tokens.
            is_prefill: False when every row has one new token and `token_forward` shall run.
        """
        num_tokens, block_size = len(input_ids), self.block_size
        token = torch.arange(num_tokens, dtype=torch.int32, device=self.device)
        starts = b_start_loc[:batch_size].to(token) if is_prefill else token
        bounds = torch.cat((starts, torch.full_like(token[:1], num_tokens)))
        seq_len = b_seq_len.to(token)
        row = torch.searchsorted(bounds[1:], token, right=True, out_int32=True)
        position = seq_len[row] - bounds[row + 1] + token
        slot = b_loc[row, position // block_size].long() * block_size + position % block_size
        state = self.make_infer_state(
            input_ids,
            batch_size=batch_size,
            total_token_num=total_token_num,
            max_len_in_batch=max_len_in_batch,
            is_prefill=is_prefill,
            b_loc=b_loc,
            b_row=token[:batch_size],
            b_start_loc=bounds,
            b_seq_len=seq_len,
            position_ids=position,
            slot_mapping=slot,
            max_new_tokens_in_batch=min(num_tokens, max_len_in_batch),
        )
        return self.run(input_ids, state).float()
