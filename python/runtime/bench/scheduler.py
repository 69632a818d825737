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


def measure_admission(batch: int, *, num_steps: int = 60) -> dict[str, Any]:
    """Microseconds of one admission decision beside `batch` running decodes.

    It is what `schedule` takes longer, in the median, while a request waits that fits now but not at the predicted
    peak. The predictions come from a history of 2048 finished outputs.
    """
    num_blocks = batch * 80
    waiting_len = num_blocks // 4 * 3 * BLOCK_SIZE
    config = _core.SchedulerConfig(
        batch + 1, max(8192, batch), BLOCK_SIZE, waiting_len + BLOCK_SIZE, VOCAB_SIZE, admission_reserve=0.2
    )
    scheduler, plans = _with_plans(config, num_blocks)
    rng = np.random.default_rng(0)
    for i, length in enumerate(rng.integers(1, 300, 2048)):
        scheduler.submit(i, [0], _core.RequestParams(max_tokens=int(length), ignore_eos=True))
    while scheduler.stats().num_finished < 2048:
        _step(scheduler, plans)
    for i in range(batch):
        prompt = rng.integers(0, VOCAB_SIZE, 100, dtype=np.int32)
        scheduler.submit(2048 + i, prompt, _core.RequestParams(max_tokens=1100, ignore_eos=True))
    for _ in range(40):
        _step(scheduler, plans)
    alone = [_step(scheduler, plans) for _ in range(num_steps)]
    scheduler.submit(-1, np.zeros(waiting_len, dtype=np.int32), _core.RequestParams(max_tokens=1))
    beside = [_step(scheduler, plans) for _ in range(num_steps)]
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (batch, 1), "the request waits beside so many decodes"
    return {"admission_us": round(statistics.median(beside) - statistics.median(alone), 2)}


def _step(scheduler: _core.Scheduler, plans: list[np.ndarray[Any, Any]]) -> float:
    """One step; microseconds of its `schedule`."""
    begin = time.perf_counter()
    header = plans[scheduler.schedule()]
    elapsed = (time.perf_counter() - begin) * 1e6
    scheduler.update(int(header[_STEP]), np.full(int(header[_NUM_ROWS]), 7, dtype=np.int32))
    return elapsed


def measure_prefix_hit(prompt_len: int = 8192, *, num_requests: int = 200) -> dict[str, Any]:
    """Microseconds from `submit` to the plan of a prompt whose full blocks but the last are all cached: the median."""
    config = _core.SchedulerConfig(1, 8192, BLOCK_SIZE, prompt_len + 256, VOCAB_SIZE)
    scheduler, plans = _with_plans(config, 2 * (prompt_len // BLOCK_SIZE + 16))
    params = _core.RequestParams(temperature=0.0, max_tokens=1)
    prompt = np.random.default_rng(0).integers(0, VOCAB_SIZE, prompt_len, dtype=np.int32)
    times_us: list[float] = []
    for request_id in range(num_requests + 1):
        begin = time.perf_counter()
        scheduler.submit(request_id, prompt, params)
        buffer = scheduler.schedule()
        times_us.append((time.perf_counter() - begin) * 1e6)
        scheduler.update(int(plans[buffer][_STEP]), np.full(1, 7, dtype=np.int32))
    stats = scheduler.stats()
    assert stats.num_cached_tokens == num_requests * (prompt_len - BLOCK_SIZE), "every request but the first hits"
    return {"in": prompt_len, "requests": num_requests, "prefix_hit_us": round(statistics.median(times_us[1:]), 2)}


def _start(batch: int, prompt_len: int, num_steps: int) -> tuple[_core.Scheduler, list[np.ndarray[Any, Any]]]:
    max_model_len = prompt_len + num_steps + 256
    config = _core.SchedulerConfig(batch, max(8192, batch), BLOCK_SIZE, max_model_len, VOCAB_SIZE, admission="none")
    num_blocks = (batch + 1) * (max_model_len // BLOCK_SIZE + 2)
    return _with_plans(config, num_blocks)


def _submit(scheduler: _core.Scheduler, batch: int, prompt_len: int) -> None:
    params = _core.RequestParams(temperature=0.0, ignore_eos=True)
    rng = np.random.default_rng(0)
    for request_id in range(batch):
        scheduler.submit(request_id, rng.integers(0, VOCAB_SIZE, prompt_len, dtype=np.int32), params)


def _with_plans(config: _core.SchedulerConfig, num_blocks: int) -> tuple[_core.Scheduler, list[np.ndarray[Any, Any]]]:
    scheduler = _core.Scheduler(config, _core.BlockAllocator(num_blocks))
    plans = [np.zeros(scheduler.plan_capacity, dtype=np.int32) for _ in range(2)]
    scheduler.attach_plan_buffers([(plan.ctypes.data, plan.size) for plan in plans])
    return scheduler, plans
