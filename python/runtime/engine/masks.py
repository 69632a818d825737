"""Masks of the ids that rows may take: from the matchers to the device, between a step's model and its sampler."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from runtime.kernels import ops

if TYPE_CHECKING:
    import llguidance

    from runtime.engine.constraint import Constraint
    from runtime.engine.model_runner import ModelRunner, Step
    from runtime.engine.request import Completion
    from runtime.kernels.step_state import RowState

Words = npt.NDArray[np.int32]

# Masks of so many rows are found by several threads, which does not show what each one takes: after a step in which
# they took long it is done one by one, and charged to its request.
MIN_PARALLEL = 8
_SLOW_S = 0.02
_MAX_THREADS = 16


def device_bytes(num_rows: int) -> int:
    """What masks take on the device beside `allowed_mask` of its rows."""
    return 8 * num_rows


class MaskTransfers:
    """Masks on the host, one buffer per plan that may exist at once, and their way to the rows' `allowed_mask`.

    On CUDA the host's memory is pinned and a kernel reads it there: the copy of a few rows is one launch.
    """

    def __init__(self, rows: RowState, num_buffers: int) -> None:
        self._allowed = rows.allowed_mask
        num_rows, num_words = self._allowed.shape
        pin = self._allowed.is_cuda

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, pin_memory=pin)

        self._masks = [ints(num_rows, num_words) for _ in range(num_buffers)]
        self._pairs = [ints(num_rows, 2) for _ in range(num_buffers)]
        self._device_pairs = torch.zeros(num_rows, 2, dtype=torch.int32, device=self._allowed.device)
        self._views: list[Words] = [masks.numpy() for masks in self._masks]

    def host(self, buffer: int) -> Words:
        """int32 [R, ceil(vocab / 32)]; mask i is that of the i-th row given to `send`."""
        return self._views[buffer]

    def send(self, buffer: int, rows: Sequence[int] | Words) -> None:
        """Mask i becomes what `rows[i]` may take in its next sample."""
        if len(rows) == 0:
            return
        pairs, device_pairs = self._pairs[buffer][: len(rows)], self._device_pairs[: len(rows)]
        pairs.numpy()[:] = np.stack([np.arange(len(rows)), rows], axis=1)
        device_pairs.copy_(pairs, non_blocking=True)
        ops.copy_blocks(self._masks[buffer], self._allowed, device_pairs)


class MaskedSteps:
    """Follows the constrained rows of the steps: fills their masks, and tells their matchers what was sampled.

    A step with such rows is launched but for its sampler, which waits until the tokens of the step before it are known.
    The device computes the step's logits meanwhile. A matcher that fails ends its own request.

    Args:
        completion_of: the live completion of a request of the scheduler.
        fail: ends a completion with an error, here and in the scheduler.
    """

    def __init__(
        self,
        runner: ModelRunner,
        completion_of: Callable[[int], Completion | None],
        fail: Callable[[Completion, BaseException], None],
    ) -> None:
        self._runner = runner
        self._completion_of = completion_of
        self._fail = fail
        self._has_cores = (os.cpu_count() or 1) >= 4
        self._was_slow = False

    def enter(self, step: Step, rows: Sequence[tuple[int, int]]) -> None:
        """A held step was launched; `rows` are (index in its plan, request id), as Scheduler.masked_rows() says."""
        found = [(index, self._completion_of(request_id)) for index, request_id in rows]
        step.masked = [(index, completion) for index, completion in found if completion is not None]

    def sample(self, step: Step) -> None:
        """Launches the sampler of a held step: all tokens before it have been taken."""
        masks = self._runner.masks(step)
        live = [(index, c) for index, c in step.masked if not c.finished and c.constraint is not None]
        errors = self._fill(masks, [c.constraint for _, c in live if c.constraint is not None])
        step.mask_errors = {live[i][0]: error for i, error in errors.items()}
        for i in errors:
            masks[i] = -1  # its token does not matter
        self._runner.sample_held(step, self._runner.rows_of(step, [index for index, _ in live]))

    def _fill(self, masks: Words, constraints: Sequence[Constraint]) -> dict[int, Exception]:
        """Mask i is that of constraint i; the errors, by i."""
        pairs = [(c.matcher, i) for i, c in enumerate(constraints) if c.matcher is not None]
        is_parallel = len(pairs) >= MIN_PARALLEL and not self._was_slow and self._has_cores
        self._was_slow = False
        if is_parallel:
            started = time.perf_counter()
            self._executor.unsafe_compute_mask_ptr(pairs, masks.ctypes.data, masks.strides[0], len(masks))
            self._was_slow = time.perf_counter() - started > _SLOW_S
        errors: dict[int, Exception] = {}
        for i, constraint in enumerate(constraints):
            try:
                is_filled = is_parallel and constraint.matcher is not None
                constraint.narrow(masks[i]) if is_filled else constraint.fill(masks[i])
            except Exception as error:
                errors[i] = error
        return errors

    @functools.cached_property
    def _executor(self) -> llguidance.LLExecutor:
        import llguidance

        return llguidance.LLExecutor(max(min((os.cpu_count() or 1) // 2, _MAX_THREADS), 1))

    def take(self, step: Step) -> None:
        """The tokens of a step are known; those of the step before have been emitted."""
        token_ids = step.token_ids.tolist()
        for index, completion in step.masked:
            if completion.finished or completion.constraint is None:
                continue  # perhaps by the step before: then it does not matter that there was no mask
            try:
                if index in step.mask_errors:
                    raise step.mask_errors[index]
                if token_ids[index] >= 0:  # else its logits were no numbers, and the scheduler ends it
                    completion.constraint.take(token_ids[index])
            except Exception as error:
                self._fail(completion, error)
