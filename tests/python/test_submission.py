"""Priority, tenants and deadlines of requests, from `LLM` to the scheduler."""

import weakref

import pytest

from runtime import LLM, SamplingParams
from runtime.engine import SubmitOptions
from runtime.engine.deadlines import Deadlines
from runtime.errors import DeadlineExceeded, InvalidRequestError

LONG = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def one_at_a_time(tiny_llama):
    """Serves one request after the other, so that the order of starts shows."""

    def make(policy):
        return LLM(str(tiny_llama), max_num_seqs=1, num_kv_blocks=64, scheduling_policy=policy)

    return make


def order_of_starts(handles):
    for handle in handles:
        handle.result(60)
    return sorted(range(len(handles)), key=lambda i: handles[i].completions[0].scheduled_at)


def test_higher_priorities_start_first(one_at_a_time):
    with one_at_a_time("priority") as llm:
        busy = llm.submit([1, 2, 3], LONG)
        handles = [llm.submit([4 + i, 5, 6], SHORT, priority=priority) for i, priority in enumerate((0, -5, 7))]
        assert order_of_starts(handles) == [2, 0, 1]
        busy.result(60)


def test_generate_takes_a_priority_for_each_prompt(one_at_a_time):
    prompts = [[4 + i, 5, 6] for i in range(3)]
    with one_at_a_time("priority") as llm:
        busy = llm.submit([1, 2, 3], LONG)
        outputs = llm.generate(prompts, SHORT, priority=[0, 1, 2])
        waited = [output.metrics.queue_s for output in outputs]
        assert waited == sorted(waited, reverse=True)
        busy.result(60)
        llm.generate(prompts, SHORT, priority=3)
        with pytest.raises(InvalidRequestError, match="2 priorities for 3 prompts"):
            llm.generate(prompts, SHORT, priority=[1, 2])


def test_tenants_take_turns(one_at_a_time):
    with one_at_a_time("fair") as llm:
        busy = llm.submit([1, 2, 3], LONG, tenant="c")
        tenants = ["a", "a", "a", "b"]
        handles = [llm.submit([4 + i, 5, 6], SHORT, tenant=tenant) for i, tenant in enumerate(tenants)]
        assert order_of_starts(handles).index(3) == 1
        busy.result(60)


class Handle:
    """What `Deadlines` sees of a request."""

    def __init__(self, arrived_at, deadline_s, done=False):
        self.arrived_at, self.options, self.done = arrived_at, SubmitOptions(deadline_s=deadline_s), done


class TestDeadline:
    def test_ends_a_request_that_runs(self, llm):
        handle, other = llm.submit([1, 2, 3], LONG, deadline_s=0.02), llm.submit([7, 8], SHORT)
        with pytest.raises(DeadlineExceeded, match=r"request \d+ did not finish in deadline_s=0.02"):
            handle.result(60)
        assert len(handle.output().outputs[0].token_ids) < 200
        assert len(other.result(60).outputs[0].token_ids) == 3
        assert llm.stats.num_running == 0

    def test_ends_a_request_that_waits(self, one_at_a_time):
        with one_at_a_time("fcfs") as llm:
            busy = llm.submit([1, 2, 3], LONG)
            waiting = llm.submit([4, 5, 6], SHORT, deadline_s=0.01)
            with pytest.raises(DeadlineExceeded):
                waiting.result(60)
            assert waiting.output().outputs[0].token_ids == []
            assert len(busy.result(60).outputs[0].token_ids) == 200

    def test_ends_every_completion(self, llm):
        params = SamplingParams(n=3, temperature=1.0, seed=0, max_tokens=200, ignore_eos=True)
        handle = llm.submit(list(range(1, 20)), params, deadline_s=0.02)
        with pytest.raises(DeadlineExceeded):
            handle.result(60)
        assert all(completion.closed for completion in handle.completions)

    def test_a_request_in_time_is_untouched(self, llm):
        completion = llm.submit([1, 2, 3], SHORT, deadline_s=60).result(60).outputs[0]
        assert completion.finish_reason == "length" and len(completion.token_ids) == 3

    def test_each_expires_once_in_the_order_of_time(self):
        late, soon, ended, never = Handle(0.0, 9.0), Handle(1.0, 2.0), Handle(0.0, 1.0, done=True), Handle(0.0, None)
        deadlines = Deadlines()
        for handle in (late, soon, ended, never):
            deadlines.add(handle)
        assert deadlines.expired(2.9) == []
        assert deadlines.expired(3.0) == [soon]
        assert deadlines.expired(99.0) == [late]
        assert deadlines.expired(99.0) == []

    def test_an_ended_request_is_let_go_before_its_time(self):
        handle, deadlines = Handle(0.0, 60.0), Deadlines()
        deadlines.add(handle)
        assert deadlines.expired(1.0) == []
        handle.done, seen = True, weakref.ref(handle)
        del handle
        assert deadlines.expired(2.0) == [] and seen() is None


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"priority": 1.5}, "priority=1.5: must be an integer"),
        ({"priority": True}, "priority=True: must be an integer"),
        ({"priority": 1 << 40}, "nearest: 2147483647"),
        ({"tenant": None}, "tenant=None: must be a name"),
        ({"tenant": "x" * 257}, "at most 256 characters"),
        ({"tenant": "\ud800"}, "tenant='.*ud800': must be text without half a surrogate pair"),
        ({"cache_salt": 5}, "cache_salt=5: must be a text of at most 1024 characters"),
        ({"cache_salt": None}, "cache_salt=None: must be a text"),
        ({"cache_salt": "x" * 1025}, "at most 1024 characters"),
        ({"cache_salt": "\udfff"}, "must be text without half a surrogate pair"),
        ({"deadline_s": 0}, "deadline_s=0: must be a number of seconds above 0"),
        ({"deadline_s": float("nan")}, "deadline_s=nan"),
        ({"deadline_s": "1"}, "deadline_s='1'"),
    ],
)
def test_bad_options_are_refused(llm, options, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        llm.submit([1, 2, 3], SHORT, **options)


@pytest.mark.parametrize("admission", ["past_future", "max_tokens", "none"])
def test_admission_changes_no_token(tiny_llama, llm, admission):
    prompts = [[1 + i, 2, 3, 4 * i] for i in range(12)]
    params = [SamplingParams(temperature=0.0, max_tokens=5 + 4 * i, ignore_eos=True) for i in range(12)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    with LLM(str(tiny_llama), block_size=4, num_kv_blocks=40, max_model_len=128, admission=admission) as small:
        assert [output.outputs[0].token_ids for output in small.generate(prompts, params)] == expected
        assert small.stats.num_free_blocks == 40
        if admission == "max_tokens":
            assert small.stats.num_preemptions == 0
