"""How requests of an `LLM` end before their time: aborted, closed, refused by a full queue, waited for in vain."""

import gc
import threading
import time

import pytest

from runtime import LLM, RequestHandle, RequestOutput, SamplingParams
from runtime.basemodel import TpPartBaseModel
from runtime.engine.model_runner import ModelRunner
from runtime.errors import CapacityError, DeadlineExceeded, RequestAborted

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def test_abort_keeps_what_is_there(llm, wait_until_idle):
    handle = llm.submit("the", SamplingParams(max_tokens=200, ignore_eos=True))
    next(iter(handle))
    handle.abort()
    handle.abort()
    out = handle.result(10)
    assert isinstance(out, RequestOutput)
    assert out.outputs[0].finish_reason == "abort" and 1 <= len(out.outputs[0].token_ids) < 200
    wait_until_idle(llm)


def test_abort_of_a_request_that_waits(tiny_llama, wait_until_idle):
    with LLM(str(tiny_llama), max_num_seqs=1) as llm:
        params = SamplingParams(max_tokens=200, ignore_eos=True, n=2)
        handles = [llm.submit("the", params) for _ in range(4)]
        for handle in handles:
            handle.abort()
        assert all(out.finish_reason == "abort" for handle in handles for out in handle.result(10).outputs)
        wait_until_idle(llm)
        running, waiting = llm.submit("the", params), llm.submit("fox", params)
        next(iter(running))
        waiting.abort()
        assert waiting.result(10).outputs[0].finish_reason == "abort"
        assert not running.done
        running.abort()


def test_abort_reaches_completions_that_wait_for_the_first(tiny_llama, wait_until_idle):
    with LLM(str(tiny_llama), max_num_seqs=2, block_size=4) as llm:
        for delay in (0.0, 0.002, 0.004, 0.006):
            handle = llm.submit([5] * 60, SamplingParams(n=6, max_tokens=150, ignore_eos=True))
            time.sleep(delay)
            handle.abort()
            assert [out.finish_reason for out in handle.result(10).outputs] == ["abort"] * 6
        wait_until_idle(llm)


def test_abort_while_completions_are_being_submitted(llm, monkeypatch):
    take = RequestHandle.take_deferred

    def take_and_abort(handle):
        taken = take(handle)
        if taken and threading.current_thread() is not threading.main_thread():
            handle.abort()
        return taken

    monkeypatch.setattr(RequestHandle, "take_deferred", take_and_abort)
    handle = llm.submit([5] * 60, SamplingParams(n=3, max_tokens=100, ignore_eos=True))
    assert [out.finish_reason for out in handle.result(10).outputs] == ["abort"] * 3


def test_submitting_while_closing_never_hangs(tiny_llama):
    for _ in range(5):
        llm, found = LLM(str(tiny_llama)), []

        def submit_until_closed(llm=llm, found=found):
            with pytest.raises(RequestAborted):
                while True:
                    found.append(llm.submit("the", GREEDY))

        threads = [threading.Thread(target=submit_until_closed) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        llm.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        for handle in found:
            try:
                handle.result(5)
            except RequestAborted:
                pass


def test_result_waits_no_longer_than_it_is_told(llm):
    handle = llm.submit("the", SamplingParams(max_tokens=200, ignore_eos=True))
    with pytest.raises(DeadlineExceeded, match="0.001 s"):
        handle.result(0.001)
    handle.abort()


def test_threads_may_share_an_llm(llm):
    expected = llm.generate("the quick", GREEDY)[0].outputs[0].token_ids
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(llm.generate("the quick", GREEDY)[0].outputs[0].token_ids))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [expected] * 8


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, about attributes that isinstance looks at
def test_a_closed_engine_holds_no_memory_of_its_model(tiny_llama):
    """Another engine in the process needs it, and NCCL does not end while a CUDA graph lives."""

    def models():
        return [one for one in gc.get_objects() if isinstance(one, (TpPartBaseModel, ModelRunner))]

    gc.collect()
    before = len(models())
    llm = LLM(tiny_llama, device="cpu")
    llm.generate(["a b"], SamplingParams(max_tokens=3))
    assert len(models()) == before + 2
    llm.close()
    assert len(models()) == before
    del llm  # which was still there itself


def test_close_ends_what_runs(tiny_llama):
    llm = LLM(str(tiny_llama))
    handle = llm.submit("the", SamplingParams(max_tokens=200, ignore_eos=True))
    next(iter(handle))
    llm.close()
    llm.close()
    with pytest.raises(RequestAborted, match="closed"):
        handle.result(5)
    with pytest.raises(RequestAborted, match="closed"):
        llm.generate("the")


def test_a_full_queue_refuses(tiny_llama):
    with LLM(str(tiny_llama), max_num_seqs=1, max_queued_requests=1) as llm:
        handles = []
        with pytest.raises(CapacityError, match="max_queued_requests"):
            for _ in range(4):
                handles.append(llm.submit("the", SamplingParams(max_tokens=200, ignore_eos=True)))
        for handle in handles:
            handle.abort()
