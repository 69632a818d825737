"""What a call of the scheduler costs from Python: the binding, and the least work that the call can have."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime import _core

_STEP = 1  # header word of a plan
_PROMPT_LEN = 16


def measure(num_calls: int = 20000) -> dict[str, Any]:
    """Microseconds of one call: medians over `num_calls`.

    `schedule` and `update` are those of one running decode, `idle_schedule` finds nothing to do.
    """
    config = _core.SchedulerConfig(1, 64, 16, _PROMPT_LEN + num_calls + 2, 32000)
    scheduler = _core.Scheduler(config, _core.BlockAllocator(num_calls // 16 + 8))
    plans = [np.zeros(scheduler.plan_capacity, dtype=np.int32) for _ in range(2)]
    scheduler.attach_plan_buffers([(plan.ctypes.data, plan.size) for plan in plans])
    params = _core.RequestParams(temperature=0.0, ignore_eos=True)
    prompt, token = np.arange(_PROMPT_LEN, dtype=np.int32), np.full(1, 7, dtype=np.int32)
    idle = [_timed(scheduler.schedule) for _ in range(num_calls)]
    scheduler.submit(0, prompt, params)
    schedule: list[float] = []
    update: list[float] = []
    for _ in range(num_calls):
        begin = time.perf_counter()
        buffer = scheduler.schedule()
        schedule.append(time.perf_counter() - begin)
        step = int(plans[buffer][_STEP])
        update.append(_timed(lambda: scheduler.update(step, token)))  # noqa: B023
    submit = [_timed(lambda: scheduler.submit(i, prompt, params)) for i in range(1, num_calls + 1)]  # noqa: B023
    abort = [_timed(lambda: scheduler.abort(i)) for i in range(1, num_calls + 1)]  # noqa: B023
    empty = statistics.median(_timed(_nothing) for _ in range(num_calls))  # the clock and a call of Python
    found = {"idle_schedule": idle, "schedule": schedule, "update": update, "submit": submit, "abort": abort}
    return {"calls": num_calls, **{f"{name}_us": _microseconds(times, empty) for name, times in found.items()}}


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _nothing() -> None:
    return None


def _microseconds(times: list[float], empty: float) -> float:
    return round((statistics.median(times) - empty) * 1e6, 2)
