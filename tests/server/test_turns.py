"""What a burst of requests shares: turns of the event loop, lines of log, the order of first tokens."""

import asyncio
import io
import logging

import pytest

from runtime.server.client import EngineClient
from runtime.server.log_format import FieldFormatter, TurnHandler
from runtime.server.messages import Accepted, Delta, Outputs
from runtime.server.turnstile import Turnstile


def test_a_turnstile_lets_a_few_through_a_turn_in_their_order():
    async def main():
        turnstile, entered, counts = Turnstile(3), [], [0]

        async def enter(name):
            await turnstile.enter()
            entered.append(name)

        async def count_turns():
            while len(entered) < 18:
                await asyncio.sleep(0)
                counts.append(len(entered))

        tasks = [asyncio.create_task(enter(i)) for i in range(20)]
        counter = asyncio.create_task(count_turns())
        await asyncio.sleep(0)
        for cancelled in (tasks[7], tasks[19]):
            cancelled.cancel()
        await asyncio.wait_for(asyncio.gather(counter, *tasks, return_exceptions=True), 30)
        assert entered == [i for i in range(19) if i != 7]
        assert max(after - before for before, after in zip(counts, counts[1:])) == 3
        await asyncio.wait_for(turnstile.enter(), 30)  # it is open again

    asyncio.run(main())


class CountedText(io.StringIO):
    """`num_writes` counts those that write something."""

    num_writes = 0

    def write(self, text):
        self.num_writes += bool(text)
        return super().write(text)


@pytest.fixture
def log():
    """(logger, stream)"""
    stream, logger = CountedText(), logging.getLogger("runtime.test_turns")
    handler = TurnHandler(stream)
    handler.setFormatter(FieldFormatter(as_json=True))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel("INFO")
    yield logger, stream
    logger.handlers = []


def test_lines_of_one_turn_are_one_write(log):
    logger, stream = log

    async def main():
        for i in range(5):
            logger.info("line %d", i)
        assert stream.num_writes == 0
        await asyncio.sleep(0)
        assert stream.num_writes == 1

    asyncio.run(main())
    assert [line.split('"message":"')[1][:6] for line in stream.getvalue().splitlines()] == [
        f"line {i}" for i in range(5)
    ]


def test_warnings_and_lines_without_a_loop_do_not_wait(log):
    logger, stream = log

    async def main():
        logger.info("first")
        logger.warning("second")
        assert stream.getvalue().index("first") < stream.getvalue().index("second")
        logger.info("third")

    logger.info("zeroth")
    assert "zeroth" in stream.getvalue()
    asyncio.run(main())
    logger.handlers[0].close()  # as at the end of the process
    logging.shutdown([lambda: logger.handlers[0]])
    assert "third" in stream.getvalue()


class Wire(EngineClient):
    """A transport whose other end is the test."""

    async def start(self):
        pass

    async def close(self):
        pass

    def _send(self, message):
        pass

    def deliver(self, *events):
        self._receive(Outputs(list(events)))


def test_first_tokens_go_first():
    async def main():
        engine, woken = Wire(), []
        engine.info = type("Info", (), {"max_model_len": 100})

        async def read(name, stream, ready):
            while not stream.has_ended:
                await ready.wait()
                ready.clear()
                woken.extend((name, type(event)) for event in stream.take())

        def submit(name):
            ready = asyncio.Event()
            stream = engine.submit([1], {}, {}, ready=ready)
            readers.append(asyncio.create_task(read(name, stream, ready)))
            return stream.id

        readers = []
        old = submit("old")
        engine.deliver(Accepted(old), Delta(old, 0, "a", [5]))
        await asyncio.sleep(0.01)
        new = submit("new")
        woken.clear()
        engine.deliver(Delta(old, 0, "b", [6]), Accepted(new), Delta(new, 0, "c", [7]))
        await asyncio.sleep(0.01)
        assert woken == [("new", Accepted), ("new", Delta), ("old", Delta)]
        woken.clear()
        engine.deliver(Delta(old, 0, "d", [8]), Delta(new, 0, "e", [9]))  # now they are equals
        await asyncio.sleep(0.01)
        assert woken == [("old", Delta), ("new", Delta)]
        for reader in readers:
            reader.cancel()

    asyncio.run(main())
