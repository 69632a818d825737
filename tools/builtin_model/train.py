"""Trains the built-in model and writes it as a checkpoint folder.

    python3 tools/builtin_model/train.py --minutes 4 --out build/builtin

Needs torch, safetensors, tokenizers and numpy; uses CUDA when there is one. The weights are marked on held-out
questions as they are stored, rounded to bfloat16.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import data
import questions
import torch
import torch.nn.functional as F
from marking import report
from model import Llama, LlamaConfig, rounded_weights, save_model
from tokenizer import BOS, END, EOS, build_tokenizer, save_tokenizer, token_id
from tokenizers import Tokenizer
from torch import Tensor

WARMUP_SHARE = 0.03
RESERVE_SECONDS = 20  # for marking and saving
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cuda, cores = torch.cuda.device_count() > 0, len(os.sched_getaffinity(0))
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--minutes", type=float, default=4.0, help="limit on the whole run (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10**9, help="limit on the steps, for a run that can be repeated")
    parser.add_argument("--tokens-per-step", type=int, default=65536 if on_cuda else 8192, help="default %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="its peak (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the data (default 0)")
    parser.add_argument("--workers", type=int, default=max(0, cores - 1) if on_cuda else 0, help="default %(default)s")
    parser.add_argument(
        "--mark", type=int, default=400 if on_cuda else 20, help="questions a skill (default %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu", help="default %(default)s")
    options = parser.parse_args()
    if not 0 <= options.mark <= questions.MAX_HELD_OUT:
        parser.error(f"--mark {options.mark}: 0 to {questions.MAX_HELD_OUT} are possible")
    return options


def batch_shape(tokens_per_step: int, index: int) -> tuple[int, int]:
    """(rows, tokens of a row) of a batch: three batches of short rows, then one that fills the context."""
    row_len = 1024 if index % 4 == 3 else 128
    return max(1, tokens_per_step // row_len), row_len


class Trainer:
    """One optimizer step per call. On CUDA a whole step (forward, backward, update) is one graph per batch shape."""

    def __init__(self, model: Llama, device: torch.device) -> None:
        self._model, self._device = model, device
        self._learning_rate = torch.zeros((), device=device)
        on_cuda = device.type == "cuda"
        matrices = [p for p in model.parameters() if p.dim() == 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
            lr=self._learning_rate,
            betas=(0.9, 0.98),
            capturable=on_cuda,
            foreach=True if on_cuda else None,
        )
        self._use_graphs = on_cuda
        self._graphs: dict[torch.Size, tuple[Callable[[], None], Tensor, Tensor, Tensor]] = {}

    def step(self, tokens: Tensor, targets: Tensor, learning_rate: float) -> Tensor:
        """Learns from one batch (int16, on the host) and returns its loss, a tensor that the next steps overwrite."""
        self._learning_rate.fill_(learning_rate)
        tokens, targets = tokens.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)
        if self._use_graphs and tokens.shape not in self._graphs:
            self._record(tokens, targets)
        if not self._use_graphs:
            return self._eager_step(tokens, targets)
        replay, static_tokens, static_targets, loss = self._graphs[tokens.shape]
        static_tokens.copy_(tokens)
        static_targets.copy_(targets)
        replay()
        return loss

    def _eager_step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, self._device.type == "cuda", cache_enabled=False):
            logits = self._model(tokens.long())
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.long().flatten(), ignore_index=data.IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        return loss.detach()

    def _record(self, tokens: Tensor, targets: Tensor) -> None:
        """Records the step for this shape; where that fails, training goes on without graphs."""
        tokens, targets = tokens.clone(), targets.clone()
        # these steps only allocate; at a rate of 0 they leave the weights as they are
        rate, stream = self._learning_rate.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._learning_rate.zero_()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._eager_step(tokens, targets)
        torch.cuda.current_stream().wait_stream(stream)
        try:
            graph = torch.cuda.CUDAGraph()
            self._optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                loss = self._eager_step(tokens, targets)
            self._graphs[tokens.shape] = (graph.replay, tokens, targets, loss)
        except RuntimeError as error:
            print(f"no CUDA graphs, training step by step: {error}", flush=True)
            self._use_graphs = False
            torch.cuda.synchronize()
        self._learning_rate.copy_(rate)


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up, then a cosine to 0, over progress 0..1."""
    if progress < WARMUP_SHARE:
        return peak * (progress + 1e-4) / WARMUP_SHARE
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def train(model: Llama, options: argparse.Namespace, made: Iterator[data.Batch], started: float) -> None:
    """Trains on `made` until the steps or the minutes since `started` (of `time.monotonic`) are used up."""
    device = torch.device(options.device)
    trainer, begin = Trainer(model, device), time.monotonic()
    end = max(started + options.minutes * 60 - RESERVE_SECONDS, begin + 1)
    for index, (tokens, targets) in enumerate(made):
        progress = max(index / options.steps, (time.monotonic() - begin) / (end - begin))
        if progress >= 1:
            break
        batch = [torch.from_numpy(part) for part in (tokens, targets)]
        if device.type == "cuda":
            batch = [part.pin_memory() for part in batch]
        loss = trainer.step(batch[0], batch[1], learning_rate(options.learning_rate, progress))
        if index % 20 == 0:  # the host must not run far ahead of the device: progress is measured in time
            value = loss.item()
            if index % (500 if device.type == "cuda" else 20) == 0:
                print(f"step {index:6d}  {time.monotonic() - begin:6.1f} s  loss {value:.4f}", flush=True)
    print(f"{index} steps of {options.tokens_per_step} tokens in {time.monotonic() - begin:.1f} s", flush=True)


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the five files of the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder, token_id(tokenizer, BOS), [token_id(tokenizer, EOS), token_id(tokenizer, END)])
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)


def main() -> None:
    started, options = time.monotonic(), parse_arguments()

    def shapes(index: int) -> tuple[int, int]:
        return batch_shape(options.tokens_per_step, index)

    made = data.batches(options.seed, shapes, options.workers, 4 * options.workers)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = Llama(LlamaConfig(vocab_size=tokenizer.get_vocab_size())).to(options.device)
    sizes = f"{sum(p.numel() for p in model.parameters())} weights, vocabulary {model.config.vocab_size}"
    print(f"torch {torch.__version__}, {options.device}, {sizes}", flush=True)
    train(model, options, made, started)
    made.close()

    save(model, tokenizer, options.out)
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in rounded_weights(model).items()})
    if options.mark:
        report(model, options.mark)
    print(f"wrote {options.out} after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
