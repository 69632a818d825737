"""transformers' `generate`: static batches, padded on the left, with its own defaults for attention and cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from runtime.bench.engines import RequestTimes, TimedRequest, import_peer, sleep_until, versions_of
from runtime.errors import ConfigError, DeviceNotFoundError, ModelFormatError

_PAD = 0  # masked, so any token id does


class TransformersEngine:
    """A model of transformers. A batch is what has arrived when the one before has ended, up to `max_num_seqs`.

    A batch runs until its longest output is complete; its shorter ones end before, and their rows go on as padding.
    """

    ARGUMENTS: ClassVar = frozenset({"dtype", "device", "load_format", "max_num_seqs", "max_model_len", "seed"})

    tensor_parallel_size = 1

    def __init__(self, model_dir: Path, arguments: Mapping[str, Any]) -> None:
        self._transformers = import_peer("transformers", "transformers")
        self._transformers.utils.logging.disable_progress_bar()
        self.model_dir = model_dir
        self.device = _device(arguments.get("device", "auto"))
        self._batch_size: int = arguments.get("max_num_seqs", 256)
        torch.manual_seed(arguments.get("seed", 0))
        dtype = arguments.get("dtype", "auto")
        try:
            self._model = self._load(dtype, arguments.get("load_format", "auto")).to(self.device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelFormatError(f"--engine transformers cannot load {model_dir}: {reason}") from None
        self.dtype = str(self._model.dtype).removeprefix("torch.")

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("transformers")

    @property
    def settings(self) -> dict[str, int]:
        return {}

    def run(
        self, requests: Sequence[TimedRequest], temperature: float = 0.0, *, every_token: bool = False
    ) -> list[RequestTimes]:
        """`generate` keeps nothing between two batches. Every token's time is free, since each step is waited for."""
        found: list[RequestTimes] = []
        start = time.perf_counter()
        for batch in self._batches(requests, start):
            moments = self._generate(batch, temperature)
            for one in batch:
                token_s = [moment - start for moment in moments[: one.output_len]]
                due_s = one.arrival_s or 0.0  # one that waits for its batch has been sent
                found.append(RequestTimes(due_s, due_s, token_s[0], token_s[-1], token_s if every_token else ()))
        return found

    def close(self) -> None:
        del self._model

    def _load(self, dtype: str, load_format: str) -> Any:
        auto, config_class = self._transformers.AutoModelForCausalLM, self._transformers.AutoConfig
        safe = {"local_files_only": True, "trust_remote_code": False}
        if load_format == "dummy":
            config = config_class.from_pretrained(self.model_dir, **safe)
            wanted = config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
            with torch.device(self.device):
                return auto.from_config(config, dtype=wanted)
        return auto.from_pretrained(self.model_dir, dtype=dtype, use_safetensors=True, **safe)

    def _batches(self, requests: Sequence[TimedRequest], start: float) -> Iterator[list[TimedRequest]]:
        left = list(requests)  # in order of arrival
        while left:
            sleep_until(start + (left[0].arrival_s or 0.0))
            now = time.perf_counter() - start
            arrived = sum((one.arrival_s or 0.0) <= now for one in left[: self._batch_size])
            yield left[: max(1, arrived)]
            del left[: max(1, arrived)]

    def _generate(self, batch: Sequence[TimedRequest], temperature: float) -> list[float]:
        """When each token came, the same moment for all rows: `time.perf_counter()`."""
        token_ids, mask = _left_padded([one.prompt_token_ids for one in batch], self.device)
        clock = _Clock([one.output_len for one in batch], self.device)
        longest = max(one.output_len for one in batch)
        config = self._transformers.GenerationConfig(
            max_new_tokens=longest, pad_token_id=_PAD, eos_token_id=None, bos_token_id=None, **_sampling(temperature)
        )
        self._model.generation_config = config  # or what the checkpoint's says would fill gaps, an end token above all
        self._model.generate(token_ids, attention_mask=mask, generation_config=config, stopping_criteria=[clock])
        if len(clock.moments) != longest:
            raise ConfigError(f"--engine transformers: {len(clock.moments)} tokens came, {longest} were asked for")
        return clock.moments


class _Clock:
    """A stopping criterion, asked after each token: notes the time, and ends the rows that have all of theirs."""

    def __init__(self, output_lens: Sequence[int], device: str) -> None:
        self.moments: list[float] = []
        self._output_lens = torch.tensor(output_lens, device=device)
        self._device = device

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row is done: bool [batch]."""
        if self._device == "cuda":
            torch.cuda.synchronize()  # as `generate` does next, to see whether all rows are done
        self.moments.append(time.perf_counter())
        return self._output_lens <= len(self.moments)


def _left_padded(prompts: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [batch, longest]; the last token of every prompt is in the last column."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    token_ids = [[_PAD] * count + list(prompt) for count, prompt in zip(padding, prompts)]
    mask = [[0] * count + [1] * (longest - count) for count in padding]
    return torch.tensor(token_ids, device=device), torch.tensor(mask, device=device)


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature == 0.0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise DeviceNotFoundError("--device=cuda: torch sees no CUDA device")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
