"""The engine behind its two transports: in this process, and in a child."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import LLM, SamplingParams
from runtime.config import BUILTIN_MODEL, EngineConfig
from runtime.engine import Knobs
from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.engine.model_runner import ModelRunner
from runtime.errors import (
    CapacityError,
    DeadlineExceeded,
    EngineDeadError,
    Error,
    InvalidRequestError,
    ModelNotFoundError,
    RequestAborted,
)
from runtime.server.client import Streams
from runtime.server.engine_process import EngineProcess
from runtime.server.local_engine import LocalEngine
from runtime.server.messages import Accepted, Delta, Ended, Scored
from runtime.tokenizer import Tokenizer

ARGUMENTS = {"num_kv_blocks": 256, "max_num_seqs": 8}
PROMPTS = ["12+35=", "reverse(abcd)=", "sort(3,1,2)="]
LONG = {"max_tokens": 400, "ignore_eos": True, "temperature": 0.0}


def make_child(**options):
    return EngineProcess(ARGUMENTS, **options)


def make_local(**options):
    return LocalEngine(EngineConfig(**ARGUMENTS), **options)


both = pytest.mark.parametrize("make", [make_local, make_child])


def run(make, use, **options):
    """Starts an engine, runs `use(engine, encode)` on it, closes it; under a deadline."""

    async def main():
        engine = make(**options)
        await engine.start()
        try:
            return await use(engine, Tokenizer(BUILTIN_MODEL).encode)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


async def read_all(streams):
    found = []
    while events := await streams.read():
        found += events
    return found


@both
def test_outputs_are_those_of_llm(make):
    with LLM(**ARGUMENTS) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=2)
        expected = [output.outputs[0] for output in llm.generate(PROMPTS, params)]

    async def use(engine, encode):
        streams = Streams(engine)
        for prompt in PROMPTS:
            streams.submit(encode(prompt), params={"temperature": 0.0, "max_tokens": 8, "logprobs": 2}, options={})
        return await read_all(streams), engine.num_open

    events, num_open = run(make, use)
    assert num_open == 0
    for i, output in enumerate(expected):
        mine = [event for request, event in events if request == i]
        assert isinstance(mine[0], Accepted) and isinstance(mine[-1], Ended)
        deltas = [event for event in mine if isinstance(event, Delta)]
        assert "".join(delta.text for delta in deltas) == output.text
        assert [t for delta in deltas for t in delta.token_ids] == output.token_ids
        assert deltas[-1].finish_reason == output.finish_reason
        positions = [(t, p) for delta in deltas for t, p in zip(delta.token_ids, delta.logprobs)]
        sampled = [next(c.logprob for c in position if c.token_id == t) for t, position in positions]
        chosen = [position[token].logprob for token, position in zip(output.token_ids, output.logprobs)]
        assert sampled == pytest.approx(chosen, abs=1e-4)
        assert mine[-1].metrics.output_tokens == len(output.token_ids)


@both
def test_a_prompt_is_scored_before_its_completion(make):
    prompt = "12+35=47"
    with LLM(**ARGUMENTS) as llm:
        token_ids = llm.tokenizer.encode(prompt)
        expected = llm.score(token_ids[:1], token_ids[1:])

    async def use(engine, encode):
        streams = Streams(engine)
        streams.submit(token_ids, params={"max_tokens": 1, "prompt_logprobs": 3}, options={})
        streams.submit(token_ids, params={"max_tokens": 1, "prompt_logprobs": 0}, options={}, generate=False)
        return await read_all(streams)

    events = run(make, use)
    for request, num_top in ((0, 3), (1, 0)):
        (scored,) = [event for i, event in events if i == request and isinstance(event, Scored)]
        assert scored.positions[0] == [] and len(scored.positions) == len(token_ids)
        found = [next(c for c in p if c.token_id == t) for t, p in zip(token_ids[1:], scored.positions[1:])]
        assert [candidate.logprob for candidate in found] == pytest.approx(expected, abs=1e-4)
        assert all(sum(c.rank is not None for c in position) == num_top for position in scored.positions[1:])
    assert sum(isinstance(event, Delta) for i, event in events if i == 0) == 1
    assert not any(isinstance(event, Delta) for i, event in events if i == 1)


@both
def test_what_is_refused_or_fails_is_an_error_of_that_request(make):
    async def use(engine, encode):
        async def error_of(kind, token_ids, params=LONG, options=()):
            streams = Streams(engine)
            with pytest.raises(kind) as found:
                streams.submit(token_ids, params=params, options=dict(options))
                await read_all(streams)
            return str(found.value)

        for num_tokens in (5000, engine.info.max_model_len):  # refused before the engine, and by it
            sentence = f"a prompt of {num_tokens} tokens: must be at most {engine.info.max_model_len - 1} tokens"
            assert sentence in await error_of(InvalidRequestError, [5] * num_tokens)
        assert "token id 9999" in await error_of(InvalidRequestError, [9999])
        assert "deadline_s=0.01" in await error_of(DeadlineExceeded, encode("1+1="), options={"deadline_s": 0.01})
        assert engine.num_open == 0 and engine.is_alive
        streams = Streams(engine)
        streams.submit(encode("1+1="), params={"max_tokens": 4}, options={})
        return await read_all(streams)

    assert isinstance(run(make, use)[-1][1], Ended)


@both
def test_abort_frees_everything(make):
    async def use(engine, encode):
        streams = Streams(engine)
        streams.submit(encode("1+1="), params={**LONG, "n": 3}, options={}, num_completions=3)
        await streams.read()
        streams.abort()
        streams.abort()
        with pytest.raises(RequestAborted):
            await read_all(streams)
        assert engine.num_open == 0
        while True:
            stats = await engine.query("stats", 10)
            if stats["num_running"] == stats["num_waiting"] == 0:
                return stats

    stats = run(make, use)
    assert stats["num_free_blocks"] == stats["num_blocks"]


@both
def test_no_more_are_open_than_allowed(make):
    async def use(engine, encode):
        streams = Streams(engine)
        streams.submit(encode("1+1="), params={**LONG, "n": 2}, options={}, num_completions=2)
        with pytest.raises(CapacityError, match="2 completions .* the limit is 2"):
            streams.submit(encode("1+1="), params=LONG, options={})
        with pytest.raises(RequestAborted):  # the refused one was part of the same answer
            await read_all(streams)

    run(make, use, max_open=2)


def test_a_failed_step_is_told_to_all():
    class Failing(ModelRunner):
        def forward(self, input_ids, infer_state):
            raise RuntimeError("kernel 7 has failed")

    async def use(engine, encode):
        readers = []
        for _ in range(3):
            streams = Streams(engine)
            streams.submit(encode("1+1="), params=LONG, options={})
            readers.append(read_all(streams))
        errors = await asyncio.gather(*readers, return_exceptions=True)
        assert "kernel 7 has failed" in str(await engine.dead)
        with pytest.raises(EngineDeadError, match="kernel 7"):
            Streams(engine).submit(encode("1+1="), params=LONG, options={})
        return errors

    errors = run(make_local, use, knobs=Knobs(runner_class=Failing))
    assert len(errors) == 3
    assert all(isinstance(error, EngineDeadError) and "kernel 7 has failed" in str(error) for error in errors)


def test_an_exception_in_one_requests_text_ends_that_request(monkeypatch):
    push = IncrementalDetokenizer.push

    def fragile(self, token_id):
        if token_id == token_of["4"]:
            raise ZeroDivisionError("secret text")
        return push(self, token_id)

    token_of = {"4": Tokenizer(BUILTIN_MODEL).token_to_id("4")}
    monkeypatch.setattr(IncrementalDetokenizer, "push", fragile)

    async def use(engine, encode):
        bad, good = Streams(engine), Streams(engine)
        bad.submit(encode("12+35="), params={"temperature": 0.0}, options={})  # 47
        good.submit(encode("reverse(abcd)="), params={"temperature": 0.0}, options={})
        with pytest.raises(Error, match="ZeroDivisionError") as found:
            await read_all(bad)
        assert "secret" not in str(found.value)
        text = "".join(event.text for _, event in await read_all(good) if isinstance(event, Delta))
        return text, engine.is_alive

    assert run(make_local, use) == ("dcba", True)


def test_a_killed_engine_is_noticed_at_once():
    async def use(engine, encode):
        streams = [Streams(engine) for _ in range(3)]
        for one in streams:
            one.submit(encode("1+1="), params=LONG, options={})
            await one.read()
        os.kill(engine.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        errors = await asyncio.gather(*map(read_all, streams), return_exceptions=True)
        return errors, time.monotonic() - killed_at

    errors, took_s = run(make_child, use)
    assert all(isinstance(e, EngineDeadError) and "was killed by SIGKILL" in str(e) for e in errors), errors
    assert took_s < 2  # what the server promises its clients


def test_a_failed_step_in_the_child_is_told_with_its_cause(tmp_path):
    script = tmp_path / "failing_child.py"
    script.write_text("""
from runtime.engine.model_runner import ModelRunner
from runtime.server import engine_child
def forward(self, input_ids, infer_state):
    raise RuntimeError("kernel 7 has failed")
ModelRunner.forward = forward
engine_child.main()
""")

    class Failing(EngineProcess):
        command = [sys.executable, str(script)]

    async def use(engine, encode):
        streams = Streams(engine)
        streams.submit(encode("1+1="), params=LONG, options={})
        with pytest.raises(EngineDeadError, match="kernel 7 has failed"):
            await read_all(streams)
        cause, closing_at = str(await engine.dead), time.monotonic()
        await engine.close()
        return cause, time.monotonic() - closing_at

    cause, closing_s = run(lambda: Failing(ARGUMENTS), use)
    assert cause == "the engine has stopped: RuntimeError: kernel 7 has failed" and closing_s < 5


def test_a_model_that_is_not_there_is_the_parents_error():
    async def main():
        await EngineProcess({"model": "/nowhere/at-all"}).start()

    with pytest.raises(ModelNotFoundError, match="at-all"):
        asyncio.run(main())


def test_the_engine_ends_with_its_server():
    script = """
import asyncio, os, sys
from runtime.server.engine_process import EngineProcess
async def main():
    engine = EngineProcess({"num_kv_blocks": 64})
    await engine.start()
    print(engine.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    child = Path(f"/proc/{int(parent.stdout)}")
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in child.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_servers_own_process_loads_no_torch():
    script = "import sys, runtime.server.run; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stdout == "False\n", found.stderr
