"""The scheduler alone: no model, no device, made-up tokens."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from runtime import _core

BLOCK_SIZE = 16
VOCAB_SIZE = 32000
_STEP, _NUM_ROWS = 1, 4  # header words of a plan


def measure(batch: int, *, prompt_len: int = 64, num_steps: int = 2000, event_log: str | None = None) -> dict[str, Any]:
    """Microseconds of `schedule`, `update` and both, with `batch` running decodes: medians over `num_steps`.

    With `event_log` they are recorded there meanwhile.
    """
    scheduler, plans = _start(batch, prompt_len, num_steps)
    if event_log is not None:
        scheduler.record(event_log)
    _submit(scheduler, batch, prompt_len)
    tokens = np.full(batch, 7, dtype=np.int32)
    schedule_us: list[float] = []
    update_us: list[float] = []
    while len(schedule_us) < num_steps:
        begin = time.perf_counter()
        buffer = scheduler.schedule()
        planned = time.perf_counter()
        header = plans[buffer]
        step, rows = int(header[_STEP]), tokens[: int(header[_NUM_ROWS])]
        ready = time.perf_counter()
        scheduler.update(step, rows)
        if len(rows) == batch and int(header[_NUM_ROWS + 1]) == batch:  # decodes only
            schedule_us.append((planned - begin) * 1e6)
            update_us.append((time.perf_counter() - ready) * 1e6)
    both = [a + b for a, b in zip(schedule_us, update_us)]
    return {
        "steps": num_steps,
        "schedule_us": round(statistics.median(schedule_us), 2),
        "update_us": round(statistics.median(update_us), 2),
        "scheduler_us": round(statistics.median(both), 2),
    }


def _start(batch: int, prompt_len: int, num_steps: int) -> tuple[_core.Scheduler, list[np.ndarray[Any, Any]]]:
    max_model_len = prompt_len + num_steps + 256
    config = _core.SchedulerConfig(batch, max(8192, batch), BLOCK_SIZE, max_model_len, VOCAB_SIZE)
    num_blocks = (batch + 1) * (max_model_len // BLOCK_SIZE + 2)
    scheduler = _core.Scheduler(config, _core.BlockAllocator(num_blocks))
    plans = [np.zeros(scheduler.plan_capacity, dtype=np.int32) for _ in range(2)]
    scheduler.attach_plan_buffers([(plan.ctypes.data, plan.size) for plan in plans])
    return scheduler, plans


def _submit(scheduler: _core.Scheduler, batch: int, prompt_len: int) -> None:
    params = _core.RequestParams(temperature=0.0, ignore_eos=True)
    rng = np.random.default_rng(0)
    for request_id in range(batch):
        scheduler.submit(request_id, rng.integers(0, VOCAB_SIZE, prompt_len, dtype=np.int32), params)
