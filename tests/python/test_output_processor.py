"""From a step's result to completions: order, stop strings, failures of one request. No model, no scheduler."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import SamplingParams
from runtime.engine.detokenizer import TextStream
from runtime.engine.output_processor import OutputProcessor
from runtime.engine.request import Completion, RequestHandle


class Bytes:
    def decode(self, token_ids, *, skip_special_tokens=True):
        if 0 in token_ids:
            raise ValueError("no such token")
        return bytes(token_ids).decode("utf-8", "replace")


class Step:
    def __init__(self, launched_at):
        self.launched_at = launched_at

    def logprobs(self, row, num_top):
        return [row], [-0.5]

    def scores(self, row):
        return [-1.0, -2.0]


def result(*events, started=()):
    """Events are (request, token, finish, stop id) or shorter."""
    rows = [(*event, *(0, -1)[len(event) - 2 :]) for event in events]
    columns = list(zip(*rows)) if rows else [()] * 4
    ids, tokens, finish, stops = (np.array(column, dtype=np.int64) for column in columns)
    count = np.arange(len(rows))
    return SimpleNamespace(
        request_ids=ids,
        token_ids=tokens,
        finish=finish,
        stop_ids=stops,
        rows=count,
        num_cached=count * 0 + 4,
        num_preemptions=count * 0 + 1,
        started=np.array(started, dtype=np.int64),
    )


class Fixture:
    def __init__(self):
        self.stopped, self.aborted, self.started = [], [], []
        self.outputs = OutputProcessor(lambda *a: self.stopped.append(a), self.aborted.append, self.started.append)
        self.next_id = 0

    def submit(self, **params):
        sampling = SamplingParams(**params)
        handle = RequestHandle(str(self.next_id), None, [65], sampling, None, lambda handle: None)
        for index in range(sampling.n):
            stops, include = sampling.stop_strings, sampling.include_stop_str_in_output
            text = TextStream(Bytes(), [], stops=stops, include_stop=include)
            handle.completions.append(Completion(handle, self.next_id, index, sampling.numbers, text))
            self.outputs.add(handle.completions[-1])
            self.next_id += 1
        return handle

    def step(self, *events, launched_at=0.0, **options):
        self.outputs.process(result(*events, **options), Step(launched_at))


@pytest.fixture
def engine():
    return Fixture()


def text_of(handle):
    return handle.output().outputs[0].text


def test_tokens_arrive_in_order_and_the_end_is_final(engine):
    a, b = engine.submit(), engine.submit()
    engine.step((0, 72), (1, 120), started=[0, 1])
    engine.step((1, 121), (0, 105, 2))
    assert a.done and not b.done
    out = a.result(0)
    assert (out.outputs[0].text, out.outputs[0].finish_reason) == ("Hi", "length")
    assert (out.num_cached_tokens, out.metrics.preemptions) == (4, 1)
    engine.step((0, 99), (1, 122, 1))
    assert text_of(a) == "Hi"
    assert text_of(b) == "xy"  # the stop token does not show
    assert b.result(0).outputs[0].token_ids == [120, 121, 122]
    assert engine.outputs.num_live == 0
    assert [completion.request_id for completion in engine.started] == [0, 1]


def test_the_time_in_the_queue_ends_with_the_first_start(engine):
    handle = engine.submit()
    engine.step((0, 72), started=[0], launched_at=handle.arrived_at + 2.0)
    engine.step((0, 105, 2), started=[0], launched_at=handle.arrived_at + 9.0)  # it had been preempted
    assert handle.result(0).metrics.queue_s == pytest.approx(2.0)


def test_a_request_takes_as_long_as_its_last_completion(engine):
    handle = engine.submit(n=2)
    engine.step((0, 72), (1, 72), started=[0, 1])
    engine.step((0, 105, 2))
    assert handle.metrics().e2e_s is None
    time.sleep(0.02)
    engine.step((1, 105, 2))
    first, last = (completion.finished_at - handle.arrived_at for completion in handle.completions)
    assert handle.metrics().e2e_s == last > first


def test_a_stop_string_tells_the_scheduler_and_ignores_what_comes_later(engine):
    handle = engine.submit(stop="lo")
    for token in b"hel":
        engine.step((0, token))
    assert text_of(handle) == "he"  # the l may begin the stop string
    engine.step((0, ord("o")))
    assert engine.stopped == [(0, 4)]
    engine.step((0, ord("!")))  # of a step that was in flight
    assert not handle.done  # the counts come with the scheduler's last word
    engine.step((0, -1, 1))
    out = handle.result(0).outputs[0]
    assert (out.text, out.token_ids, out.finish_reason, out.stop_reason) == ("he", list(b"helo"), "stop", "lo")


@pytest.mark.parametrize("finish, reasons", [(2, ("stop", "\ufffd")), (3, ("abort", None))])
def test_a_stop_string_in_what_was_held_back_ends_what_nobody_aborted(engine, finish, reasons):
    handle = engine.submit(stop="\ufffd")
    engine.step((0, 0xE2))  # the first byte of three
    assert not engine.stopped
    engine.step((0, -1, finish))
    out = handle.result(0).outputs[0]
    assert (out.finish_reason, out.stop_reason) == reasons


def test_text_that_only_looked_like_a_stop_string_is_shown_at_the_end(engine):
    handle = engine.submit(stop="lo")
    engine.step((0, ord("l")))
    engine.step((0, ord("l"), 2))
    assert text_of(handle) == "ll"


def test_a_stop_token_is_the_stop_reason_and_eos_is_none(engine):
    a, b = engine.submit(), engine.submit(include_stop_str_in_output=True)
    engine.step((0, 72, 1, 72), (1, 73, 1, -1))
    assert (text_of(a), a.result(0).outputs[0].stop_reason) == ("", 72)
    assert (text_of(b), b.result(0).outputs[0].stop_reason) == ("I", None)


def test_a_request_whose_text_fails_is_aborted_and_the_others_go_on(engine):
    bad, good = engine.submit(stop="x"), engine.submit()
    engine.step((0, 0), (1, 72))
    engine.step((0, 65), (1, 73, 2))
    assert engine.aborted == [0]
    with pytest.raises(ValueError, match="no such token"):
        bad.result(0)
    assert text_of(good) == "HI"


def test_text_that_nobody_may_stop_fails_in_the_callers_hands(engine):
    handle = engine.submit()
    engine.step((0, 0, 2))
    assert handle.done
    with pytest.raises(ValueError, match="no such token"):
        handle.result(0)


def test_logprobs_only_where_asked_for(engine):
    asked, not_asked = engine.submit(logprobs=0), engine.submit()
    engine.step((0, 65, 2), (1, 66, 2))
    out = asked.result(0).outputs[0]
    assert out.cumulative_logprob == -0.5 and out.logprobs[0][0].logprob == -0.5
    assert not_asked.result(0).outputs[0].logprobs is None


def test_failing_all_reaches_every_waiter(engine):
    handles = [engine.submit(), engine.submit()]
    engine.outputs.fail_all(RuntimeError("over"))
    for handle in handles:
        with pytest.raises(RuntimeError, match="over"):
            handle.result(0)
    assert engine.outputs.num_live == 0


def test_what_ended_while_it_waited_has_no_step(engine):
    handle = engine.submit()
    engine.outputs.process(result((0, -1, 3)), None)
    out = handle.result(0)
    assert out.outputs[0].finish_reason == "abort" and out.metrics.queue_s is None
