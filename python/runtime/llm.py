"""`LLM`: a model folder in, answers out."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtime.config import BUILTIN_LINE, EngineConfig
from runtime.engine import Engine, Knobs, PinnedPrefix, RequestHandle, SubmitOptions
from runtime.engine.memory_plan import MemoryPlan, plan_for
from runtime.errors import ConfigError, InvalidRequestError
from runtime.log import set_level
from runtime.outputs import RequestOutput, StreamChunk
from runtime.prompts import Prompt, encode_prompt, encode_scored, split_prompts
from runtime.sampling_params import SCORE_PARAMS, SamplingParams

if TYPE_CHECKING:
    from runtime import _core
    from runtime.chat_template import Message
    from runtime.engine.memory_use import Memory
    from runtime.tokenizer import Tokenizer


class LLM:
    """A loaded model and the engine that serves it. Every method may be called from any thread.

    Args:
        model: folder of a checkpoint; without it the built-in model is served.
        The others are described at `runtime.config.EngineConfig`; an unknown one is an error.

    Raises:
        ConfigError: an argument that cannot work.
        ModelNotFoundError, ModelFormatError: no model there, or its files are wrong.
        CapacityError: the model does not fit into memory.
        EngineDeadError: the process of a rank ended while it started.
    """

    _knobs = Knobs()

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        device: str = "auto",
        load_format: str = "auto",
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        block_size: int | None = None,
        gpu_memory_utilization: float = 0.9,
        kv_cache_memory_bytes: int | None = None,
        num_kv_blocks: int | None = None,
        enable_prefix_caching: bool = True,
        scheduling_policy: str = "fcfs",
        admission: str = "past_future",
        cpu_kv_bytes: int = 0,
        eviction: str = "lru",
        deterministic: bool = False,
        seed: int = 0,
        enforce_eager: bool = False,
        step_timeout: float | None = None,
        max_queued_requests: int | None = None,
        all_reduce_overlap: str = "none",
        event_log: str | os.PathLike[str] | None = None,
        log_level: str | None = None,
        **unknown: Any,
    ) -> None:
        arguments = {**locals(), **unknown}
        for name in ("self", "unknown"):
            del arguments[name]
        config = EngineConfig.from_arguments(arguments)
        if config.log_level is not None:
            set_level(config.log_level)
        self._engine = Engine(config, self._knobs)
        if config.is_builtin:
            print(BUILTIN_LINE, file=sys.stderr)
        self._finalizer = weakref.finalize(self, self._engine.close)

    @property
    def startup(self) -> list[dict[str, float]]:
        """Seconds of each phase of the engine's start, a dict a rank, in their order."""
        return self._engine.startup

    @classmethod
    def _with_knobs(cls, knobs: Knobs, model: str | None = None, **arguments: Any) -> LLM:
        """For tests and benchmarks: an LLM whose engine has `knobs`."""
        turned: type[LLM] = type(cls.__name__, (cls,), {"_knobs": knobs})
        return turned(model, **arguments)

    @classmethod
    def plan(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device_name: str | None = None,
        device_memory_bytes: int | None = None,
        **arguments: Any,
    ) -> MemoryPlan:
        """The memory that `LLM(model, **arguments)` would take, from config.json and tensor headers alone.

        Args:
            device_name: a CUDA device that need not be here, such as "NVIDIA H200".
            device_memory_bytes: memory of the device; alone it describes a CUDA device (with device="cpu", a CPU).
                Without both, this machine's device is asked.

        Raises:
            CapacityError: it does not fit; says what would. Otherwise as the constructor.
        """
        return plan_for(EngineConfig.from_arguments({"model": model, **arguments}), device_name, device_memory_bytes)

    # ---- asking ---------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts, in their order.

        Args:
            prompts: a text, token ids, {"prompt": ...}, {"prompt_token_ids": ...}, or a list of these.
            sampling_params: one for all, or one for each prompt.
            use_tqdm: a progress bar; None: on a terminal with more than one prompt.
            priority: one for all, or one for each prompt; higher ones go first under scheduling_policy="priority".
        """
        pairs = self._pair(split_prompts(prompts), sampling_params)
        encoded = [(*encode_prompt(prompt, self.tokenizer), params) for prompt, params in pairs]
        return self._run(encoded, use_tqdm, _options_of(len(encoded), priority))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers a conversation, or each of a list of conversations.

        Args:
            messages: [{"role": "user", "content": ...}, ...], or a list of such lists.
            chat_template_kwargs: further variables of the model's chat template.
        """
        conversations = list(messages) if _is_list_of_conversations(messages) else [messages]
        if not conversations:
            raise InvalidRequestError("messages", messages, "at least one message")
        options = {**(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt, "tools": tools}
        encoded = []
        for conversation, params in self._pair(conversations, sampling_params):
            encoded.append((*self.encode_chat(conversation, **options), params))
        return self._run(encoded, use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Completes one prompt, chunk by chunk. Leaving the loop early aborts the request."""
        handle = self.submit(prompt, sampling_params)
        try:
            yield from handle
        finally:
            handle.abort()

    async def agenerate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamChunk]:
        """`stream` for asyncio."""
        handle = self.submit(prompt, sampling_params)
        try:
            async for chunk in handle:
                yield chunk
        finally:
            handle.abort()

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline_s: float | None = None,
        cache_salt: str = "",
    ) -> RequestHandle:
        """Queues one prompt and returns at once.

        Args:
            priority: higher ones go first under scheduling_policy="priority".
            tenant: whose share it counts against under scheduling_policy="fair".
            deadline_s: seconds after which the request ends with DeadlineExceeded.
            cache_salt: requests share cached prefixes only under equal salts.
        """
        options = SubmitOptions(priority=priority, tenant=tenant, deadline_s=deadline_s, cache_salt=cache_salt)
        text, token_ids = encode_prompt(prompt, self.tokenizer)
        return self._engine.submit(text, token_ids, _checked_params(sampling_params), options)

    def score(self, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> list[float]:
        """The logprob of each token of `continuation`, as if it had been the output after `prompt`."""
        text, token_ids, start = encode_scored(prompt, continuation, self.tokenizer)
        handle = self._engine.submit(text, token_ids, SCORE_PARAMS, SubmitOptions(score_start=start))
        return handle.scores()

    # ---- the engine -----------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's; None with skip_tokenizer_init=True."""
        return self._engine.tokenizer

    @property
    def config(self) -> EngineConfig:
        """The arguments, with what depends on the device decided."""
        return self._engine.config

    @property
    def max_model_len(self) -> int:
        """Longest context in tokens, prompt and output together."""
        return self._engine.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids run below it."""
        return self._engine.vocab_size

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self._engine.device

    @property
    def dtype(self) -> str:
        """Of weights and activations, such as "bfloat16"."""
        return self._engine.dtype

    @property
    def memory(self) -> Memory:
        """What was planned, and on CUDA what was measured once the engine was ready."""
        return self._engine.memory

    @property
    def stats(self) -> _core.SchedulerStats:
        """Requests, KV blocks and tokens as counted by the scheduler."""
        return self._engine.stats

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> tuple[str, list[int]]:
        """(text, token ids) of a conversation under the model's chat template."""
        if self.tokenizer is None:
            raise ConfigError(
                "a conversation needs a tokenizer", hint="skip_tokenizer_init=True takes prompt_token_ids alone"
            )
        text = self.tokenizer.apply_chat_template(messages, **options)
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not token_ids:
            raise InvalidRequestError("messages", messages, "rendered to at least one token")
        return text, token_ids

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes; requests that run keep theirs."""
        self._engine.reset_prefix_cache()

    def pin_prefix(self, prompt: Prompt, *, cache_salt: str = "") -> PinnedPrefix:
        """Computes a prompt, unless it is cached, and keeps its full KV blocks until they are unpinned.

        For a prefix that many prompts will share: `with llm.pin_prefix(system_prompt): ...`. Pins yield to a request
        that could never run beside them, and end with `reset_prefix_cache`.

        Raises:
            ConfigError: there is no prefix cache.
            CapacityError: pinned prefixes would hold more than half of the KV cache.
        """
        text, token_ids = encode_prompt(prompt, self.tokenizer)
        return self._engine.pin_prefix(text, token_ids, cache_salt)

    def close(self) -> None:
        """Stops the engine; requests that still run end with RequestAborted. Idempotent."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- helpers --------------------------------------------------------------------------

    def _pair(self, prompts: Sequence[Any], params: object) -> list[tuple[Any, SamplingParams]]:
        if not isinstance(params, Sequence):
            return [(prompt, _checked_params(params)) for prompt in prompts]
        if len(params) != len(prompts):
            message = f"{len(params)} sampling_params for {len(prompts)} prompts: give one, or one for each"
            raise InvalidRequestError("sampling_params", params, message=message)
        return [(prompt, _checked_params(one)) for prompt, one in zip(prompts, params)]

    def _run(
        self,
        requests: Sequence[tuple[str | None, list[int], SamplingParams]],
        use_tqdm: bool | None,
        options: Sequence[SubmitOptions] | None = None,
    ) -> list[RequestOutput]:
        handles: list[RequestHandle] = []
        try:
            for request, option in zip(requests, options or _options_of(len(requests), None)):
                handles.append(self._engine.submit(*request, option))
            return [handle.result() for handle in _with_progress(handles, use_tqdm)]
        except BaseException:  # KeyboardInterrupt included
            for handle in handles:
                handle.abort()
            raise


def _is_list_of_conversations(messages: object) -> bool:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return False
    return not any(isinstance(one, (Mapping, str)) for one in messages)


def _checked_params(params: object) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError("sampling_params", params, "a SamplingParams")
    return params


def _options_of(count: int, priority: int | Sequence[int] | None) -> list[SubmitOptions]:
    """One for each of so many prompts."""
    if not isinstance(priority, Sequence):
        return [SubmitOptions(priority=0 if priority is None else priority)] * count
    if len(priority) != count:
        message = f"{len(priority)} priorities for {count} prompts: give one, or one for each"
        raise InvalidRequestError("priority", priority, message=message)
    return [SubmitOptions(priority=one) for one in priority]


def _with_progress(handles: Sequence[RequestHandle], use_tqdm: bool | None) -> Iterator[RequestHandle]:
    wanted = use_tqdm if use_tqdm is not None else len(handles) > 1 and sys.stderr.isatty()
    if wanted:
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError:
            pass
        else:
            yield from tqdm(handles, unit="prompt", file=sys.stderr)
            return
    yield from handles
