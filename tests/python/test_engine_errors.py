"""One request's failure ends that request; a failed step ends the engine, and nobody waits for ever."""

import asyncio
import threading
import time

import pytest

from runtime import LLM, SamplingParams
from runtime.engine import Knobs
from runtime.engine.model_runner import ModelRunner
from runtime.errors import EngineDeadError, InvalidRequestError

LONG = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0.0)


class Failing(ModelRunner):
    """Fails in its twentieth step."""

    count = 0

    def forward(self, input_ids, infer_state):
        self.count += 1
        if self.count == 20:
            raise RuntimeError("kernel 7 has failed")
        return super().forward(input_ids, infer_state)


class Hanging(ModelRunner):
    """Hangs in its fifth step, until released."""

    count = 0
    release = threading.Event()

    def forward(self, input_ids, infer_state):
        self.count += 1
        if self.count == 5:
            self.release.wait(20)
        return super().forward(input_ids, infer_state)


def test_a_failed_step_reaches_every_caller(tiny_llama):
    llm = LLM._with_knobs(Knobs(runner_class=Failing), str(tiny_llama), max_num_seqs=2)
    handles = [llm.submit("the fox", LONG) for _ in range(5)]  # three of them wait
    found = []

    async def consume():
        async for _ in handles[1]:
            pass

    def iterate():
        try:
            asyncio.run(consume())
        except EngineDeadError as error:
            found.append(error)

    thread = threading.Thread(target=iterate)
    thread.start()
    for handle in handles:
        with pytest.raises(EngineDeadError, match="kernel 7 has failed") as dead:
            handle.result(10)
        assert isinstance(dead.value.cause, RuntimeError)
        assert isinstance(dead.value.__cause__, RuntimeError)
        assert dead.value.code == "engine_dead"
        found.append(dead.value)
    with pytest.raises(EngineDeadError, match="kernel 7"):
        list(handles[0])
    thread.join(10)
    assert len({id(error) for error in found}) == 6  # each caller's own: one object would mix their tracebacks
    for ask in (lambda: llm.generate("x"), lambda: llm.stats, llm.reset_prefix_cache, lambda: llm.score("a", "b")):
        with pytest.raises(EngineDeadError, match="kernel 7"):
            ask()
    llm.close()


def test_a_step_that_hangs_is_seen(tiny_llama):
    llm = LLM._with_knobs(Knobs(runner_class=Hanging), str(tiny_llama), step_timeout=0.4)
    begin = time.monotonic()
    with pytest.raises(EngineDeadError, match="step_timeout=0.4"):
        llm.generate("the fox", LONG)
    assert time.monotonic() - begin < 5
    Hanging.release.set()
    llm.close()


def test_a_failing_detokenizer_ends_its_request_only(llm, monkeypatch):
    decode, calls = type(llm.tokenizer).decode, []

    def failing(self, token_ids, *, skip_special_tokens=True):
        if not skip_special_tokens:
            calls.append(1)
            if len(calls) > 3:
                raise ValueError("cannot decode")
        return decode(self, token_ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(type(llm.tokenizer), "decode", failing)
    expected = llm.generate("the", LONG)[0].outputs[0]
    bad = llm.submit("the", SamplingParams(max_tokens=50, skip_special_tokens=False, stop="\0", ignore_eos=True))
    good = llm.submit("the", LONG)
    with pytest.raises(ValueError, match="cannot decode"):
        bad.result(10)
    assert good.result(10).outputs[0] == expected


def test_refused_requests_leave_nothing(llm):
    for _ in range(3):
        with pytest.raises(InvalidRequestError):
            llm.generate([[5, 6, 7], [5] * 999], LONG)
    assert llm.stats.num_running == llm.stats.num_waiting == 0 or wait_for_abort(llm)


def wait_for_abort(llm):
    deadline = time.monotonic() + 5
    while llm.stats.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    return llm.stats.num_running == 0


def test_an_abort_storm_leaves_nothing(llm):
    for round_ in range(10):
        handles = [llm.submit([2 + i, 3, 4], LONG) for i in range(40)]
        time.sleep(0.003 * (round_ % 4))
        for handle in handles[round_ % 3 :: 2]:
            handle.abort()
        for handle in handles:
            handle.abort()
            assert handle.result(10).outputs[0].finish_reason == "abort"
    stats = llm.stats
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
