"""The steps that an engine runs on padding before it is ready, so that none compiles or allocates while serving.

Triton compiles a kernel anew for each power of two that holds the batch, and for integer arguments that are 1 or
divisible by 16: a batch of every such class is run, as a mixed step and, without graphs, as a decode step. Token
counts have classes too, up to 256 those of the matrix kernels for few rows; larger ones fill the allocator's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

_MAX_FEW_ROWS = 256

# Torch's allocator keeps tensors of up to a MiB in segments of their own. Steps whose tensors are just below that need
# the most of them, and which steps these are depends on the model's widths: room for more than a step has at a time.
SMALL_TENSORS_BYTES = 16 << 20


@dataclass(frozen=True)
class WarmUpStep:
    """A step of padding: all rows but the first have one new token."""

    num_rows: int
    num_tokens: int
    is_prefill: bool

    @property
    def max_new_tokens(self) -> int:
        """Of the first row."""
        return self.num_tokens - self.num_rows + 1


def size_class(size: int) -> tuple[int, bool, bool]:
    """What Triton distinguishes of a number of rows that is an argument and rounded up to a tile."""
    return 1 << (size - 1).bit_length(), size == 1, size % 16 == 0


def representatives(limit: int) -> list[int]:
    """The largest size of each class up to `limit`, descending."""
    largest = {size_class(size): size for size in range(1, limit + 1)}
    return sorted(largest.values(), reverse=True)


def warm_up_steps(max_num_seqs: int, max_num_batched_tokens: int, *, with_decode: bool) -> list[WarmUpStep]:
    """Largest first, so that buffers that grow do so once."""
    most_rows = min(max_num_seqs, max_num_batched_tokens)
    halves: list[int] = []
    while (tokens := max_num_batched_tokens >> len(halves)) > _MAX_FEW_ROWS:
        halves.append(tokens)
    if halves:  # both classes of the largest
        halves += [max_num_batched_tokens // 16 * 16, max_num_batched_tokens - (max_num_batched_tokens % 16 == 0)]
    few = representatives(min(max_num_batched_tokens, _MAX_FEW_ROWS))
    rows = representatives(most_rows)
    steps = [WarmUpStep(most_rows, max_num_batched_tokens, True)]
    steps += [WarmUpStep(1, tokens, True) for tokens in halves + few]
    # a row with two tokens and others with one: both attention kernels
    steps += [WarmUpStep(count, min(count + 1, max_num_batched_tokens), True) for count in rows]
    steps += [WarmUpStep(count, count, False) for count in rows if with_decode]
    return sorted(set(steps), key=lambda step: (step.num_tokens, step.num_rows), reverse=True)
