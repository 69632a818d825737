"""The binding of the scheduler: what crosses it, in which types. The scheduler's own stories are in tests/cpp."""

import threading
import time

import numpy as np
import pytest

from runtime import _core
from runtime.errors import CapacityError, ConfigError, InvalidRequestError
from runtime.kernels import step_plan

PLAN = _core.step_plan


class Driver:
    """A scheduler with its buffers; every sampled token is 7."""

    def __init__(self, num_blocks=20, **changes):
        limits = dict(max_num_seqs=4, max_num_batched_tokens=16, block_size=4, max_model_len=64, vocab_size=100)
        config = _core.SchedulerConfig(**limits | changes)
        self.allocator = _core.BlockAllocator(num_blocks)
        self.scheduler = _core.Scheduler(config, self.allocator)
        num_buffers = config.num_steps_in_flight + 1
        self.buffers = [np.zeros(self.scheduler.plan_capacity, np.int32) for _ in range(num_buffers)]
        self.scheduler.attach_plan_buffers([(b.ctypes.data, b.size) for b in self.buffers])

    def step(self):
        """One step; its plan and its result."""
        plan = self.buffers[self.scheduler.schedule()]
        tokens = np.full(plan[PLAN.HEADER_NUM_ROWS], 7, np.int32)
        return plan, self.scheduler.update(int(plan[PLAN.HEADER_STEP]), tokens)


def test_a_request_from_submit_to_its_last_token():
    driver = Driver()
    driver.scheduler.submit(41, np.arange(5, dtype=np.int32), _core.RequestParams(max_tokens=2))
    plan, first = driver.step()
    driver.scheduler.check()
    at, count = plan[PLAN.HEADER_TOKENS], plan[PLAN.HEADER_TOKENS + 1]
    assert plan[at : at + count].tolist() == [0, 1, 2, 3, 4]
    assert (first.request_ids.tolist(), first.token_ids.tolist(), first.finish.tolist()) == ([41], [7], [0])
    assert (first.rows.tolist(), first.stop_ids.tolist(), first.started.tolist()) == ([0], [-1], [41])
    _, last = driver.step()
    assert (last.finish.tolist(), last.num_cached.tolist(), last.num_preemptions.tolist()) == ([2], [0], [0])
    assert driver.scheduler.schedule() == -1
    assert driver.allocator.num_free == driver.allocator.num_blocks == 20
    stats = driver.scheduler.stats()
    assert (stats.num_steps, stats.num_output_tokens, stats.num_finished) == (2, 2, 1)


def test_results_are_read_only_arrays_that_outlive_the_next_step():
    driver = Driver()
    driver.scheduler.submit(1, [1, 2, 3], _core.RequestParams(max_tokens=3))
    _, result = driver.step()
    token_ids = result.token_ids
    driver.step()
    del result
    assert token_ids.tolist() == [7] and token_ids.dtype == np.int32 and not token_ids.flags.writeable
    _, result = driver.step()
    dtypes = {name: getattr(result, name).dtype.name for name in ("request_ids", "finish", "rows", "started")}
    assert dtypes == {"request_ids": "int64", "finish": "int8", "rows": "int32", "started": "int64"}


@pytest.mark.parametrize("prompt", [[3, 4], (3, 4), np.array([3, 4]), np.array([3, 4], np.int32)])
def test_prompts_in_every_form(prompt):
    driver = Driver()
    driver.scheduler.submit(1, prompt, _core.RequestParams())
    plan, _ = driver.step()
    assert plan[plan[PLAN.HEADER_TOKENS] :][:2].tolist() == [3, 4]


@pytest.mark.parametrize("prompt", [[], [100], [-1], [2**40], [2**70], ["a"], [1.5], np.array([1.5])])
def test_prompts_that_are_refused(prompt):
    driver = Driver()
    with pytest.raises(InvalidRequestError, match="prompt_ids"):
        driver.scheduler.submit(1, prompt, _core.RequestParams())


@pytest.mark.parametrize(
    "name, value, suggestion",
    [
        ("temperature", 3, 2),
        ("temperature", float("nan"), None),
        ("top_k", 2**70, None),
        ("max_tokens", 0, 1),
        ("max_tokens", True, None),
        ("max_tokens", 1.5, None),
        ("seed", 2**63, None),
        ("top_p", "x", None),
        ("ignore_eos", 1, None),
        ("stop_token_ids", 5, None),
        ("stop_token_ids", list(range(63)), "62 entries"),
        ("logit_bias", {1: 200.0}, 100),
        ("logit_bias", [1, 2], None),
        ("allowed_token_ids", [], None),
    ],
)
def test_refused_numbers_name_the_field(name, value, suggestion):
    with pytest.raises(InvalidRequestError) as caught:
        _core.RequestParams(**{name: value})
    assert caught.value.param == name and caught.value.suggestion == suggestion
    assert str(caught.value).startswith(f"{name}=") and "must be" in str(caught.value)


@pytest.mark.parametrize("bias", [{3: 1, 4: -1.5}, [(3, 1), (4, -1.5)]])
def test_logit_bias_as_a_dict_or_as_pairs(bias):
    driver = Driver()
    driver.scheduler.submit(1, [5], _core.RequestParams(logit_bias=bias))
    plan, _ = driver.step()
    record = plan[plan[PLAN.HEADER_NEW_ROWS] :][: PLAN.NEW_ROW_WORDS]
    at, count = record[step_plan.REC_LOGIT_BIAS :][:2]
    pairs = plan[at:][: 2 * count].reshape(count, 2)
    assert pairs[:, 0].tolist() == [3, 4] and pairs[:, 1].copy().view(np.float32).tolist() == [1.0, -1.5]


def test_errors_are_the_package_s_own():
    with pytest.raises(ConfigError, match="block_size=12: must be a power of two; nearest: 8"):
        Driver(block_size=12)
    driver = Driver(max_queued_requests=1)
    driver.scheduler.submit(1, [1], _core.RequestParams())
    with pytest.raises(CapacityError, match="max_queued_requests=1") as caught:
        driver.scheduler.submit(2, [1], _core.RequestParams())
    assert caught.value.hint
    with pytest.raises(ValueError, match="update needs a step in flight"):
        driver.scheduler.update(1, np.zeros(1, np.int32))
    with pytest.raises(TypeError):
        driver.scheduler.update(1, np.zeros(1, np.int64))


def test_abort_while_waiting_comes_from_take_events():
    driver = Driver()
    driver.scheduler.submit(1, [1], _core.RequestParams())
    assert driver.scheduler.abort(1) and not driver.scheduler.abort(1)
    result = driver.scheduler.take_events()
    assert (result.request_ids.tolist(), result.finish.tolist(), result.rows.tolist()) == ([1], [3], [-1])


def test_wait_lets_other_threads_run():
    scheduler = Driver().scheduler
    assert not scheduler.wait(0)
    timer = threading.Timer(0.05, lambda: scheduler.submit(1, [1], _core.RequestParams()))
    timer.start()
    started = time.monotonic()
    assert scheduler.wait(20)
    assert time.monotonic() - started < 10
    scheduler.wake()
