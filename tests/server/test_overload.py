"""What a server does when more is asked of it than it can do, and when that only looks so."""

import asyncio
import collections
import json

from runtime.server.overload import MAX_WAIT_S, Overload
from runtime.server.queue_wait import QueueWait

STARTS_PER_S = 40


class FakeServer:
    """Starts requests in their order, so many a second, on a clock of its own, and ends each at once."""

    def __init__(self):
        self.now, self.next_start, self.num_sent = 0.0, 0.0, 0
        self.waits = []  # of those that started
        self.wait = QueueWait(lambda: self.now)
        self.overload = Overload(self.wait, lambda: self.now)
        self._queue = collections.deque()

    def send(self, arrived_at=None):
        """Whether it is taken."""
        self.num_sent += 1
        if self.overload.refuses(self.now if arrived_at is None else arrived_at):
            return False
        if not self._queue:
            self.next_start = max(self.next_start, self.now + 1 / STARTS_PER_S)
        self._queue.append((self.num_sent, self.now))
        self.wait.arrive(self.num_sent, 1)
        return True

    def run(self, until):
        """How many ended until then."""
        ended = 0
        while self._queue and self.next_start <= until:
            self.now = self.next_start
            self.next_start += 1 / STARTS_PER_S
            request, arrival = self._queue.popleft()
            self.wait.start(request)
            self.overload.end()
            self.waits.append(self.now - arrival)
            ended += 1
        self.now = until
        return ended


def keep_open(server, count, seconds, interval_s=0.05):
    """A client sends so many at once, then one for each that has ended; how many of all were refused."""
    refused = sum(not server.send() for _ in range(count))
    for _ in range(int(seconds / interval_s)):
        ended = server.run(server.now + interval_s)
        refused += sum(not server.send() for _ in range(ended))
    return refused


def keep_coming(server, rate, seconds):
    """Clients that do not wait for each other; whether each request was taken."""
    taken = []
    for _ in range(int(rate * seconds)):
        server.run(server.now + 1 / rate)
        taken.append(server.send())
    return taken


def test_a_client_that_waits_for_its_answers_is_never_refused():
    server = FakeServer()
    assert keep_open(server, 512, 60) == 0
    assert min(server.waits[-100:]) > 5 * MAX_WAIT_S


def test_a_burst_is_one_however_long_it_takes_to_read():
    server = FakeServer()
    for _ in range(512):  # that came at once
        server.run(server.now + 0.01)
        assert server.send(arrived_at=0.0)


def test_those_that_keep_coming_are_refused_before_the_queue_is_long():
    for times in (1.1, 1.5, 5, 10):
        server = FakeServer()
        keep_coming(server, times * STARTS_PER_S, 20)
        num_started = len(server.waits)
        taken = keep_coming(server, times * STARTS_PER_S, 30)
        waits = server.waits[num_started:]
        assert len(waits) >= 0.99 * 30 * STARTS_PER_S  # it is never idle
        assert max(waits) < 2 * MAX_WAIT_S
        assert abs(sum(taken) / len(taken) - 1 / times) < 0.1


def test_a_burst_of_another_is_refused_alone():
    server = FakeServer()
    assert keep_open(server, 512, 5) == 0
    others = 0
    for _ in range(3):
        others += sum(server.send() for _ in range(100))
        assert keep_open(server, 0, 5) == 0
    assert others <= 10


def test_it_ends_with_the_overload():
    server = FakeServer()
    assert not all(keep_coming(server, 5 * STARTS_PER_S, 10))
    server.run(server.now + 10)
    assert all(keep_coming(server, 0.9 * STARTS_PER_S, 10))
    server.run(server.now + 10)
    assert keep_open(server, 512, 5) == 0


def test_a_few_who_wait_are_no_overload():
    server = FakeServer()
    keep_coming(server, 0.9 * STARTS_PER_S, 10)
    server.run(server.now + 10)
    for _ in range(7):  # each comes when the last has waited for long
        assert server.send()
        server.now += 5 * MAX_WAIT_S
    assert server.wait.expected_s() > MAX_WAIT_S


def test_a_wave_of_starts_is_no_fast_queue():
    now = [0.0]
    wait = QueueWait(lambda: now[0])
    for request in range(1000):
        wait.arrive(request, 1)
    for wave in range(5):  # of requests of one length, every 2 s
        for request in range(64 * wave, 64 * (wave + 1)):
            now[0] += 0.001
            wait.start(request)
        if wave >= 2:
            assert wait.expected_s() > 0.5 * (1000 - 64 * (wave + 1)) / 32
        now[0] += 2 - 0.064


async def ask(port, **fields):
    """(status, headers, body) of one completion on a connection of its own."""
    content = json.dumps({"prompt": "1+1=", "ignore_eos": True, "stream": True, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    lines, _, body = answer.partition("\r\n\r\n")
    status, *headers = lines.split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in headers), body


def is_whole(answer):
    status, _, body = answer
    return status == 200 and "data: [DONE]" in body


def test_512_streams_at_once_are_all_served(start_server):
    port = start_server("--max-num-seqs", 64).port

    async def ask_twice():
        return [is_whole(await ask(port, max_tokens=4)) for _ in range(2)]

    async def ask_all():
        return await asyncio.wait_for(asyncio.gather(*(ask_twice() for _ in range(512))), 100)

    assert asyncio.run(ask_all()) == [[True, True]] * 512


def test_overload_is_seen_without_a_setting(start_server):
    port = start_server("--max-num-seqs", 1).port

    async def flood():
        tasks = []
        while not any(task.done() and task.result()[0] == 429 for task in tasks):
            tasks.append(asyncio.create_task(ask(port, max_tokens=20)))
            await asyncio.sleep(0.02)
            assert len(tasks) < 1000
        patient = asyncio.create_task(ask(port, max_tokens=20, deadline_s=600))
        for _ in range(60):
            tasks.append(asyncio.create_task(ask(port, max_tokens=20)))
            await asyncio.sleep(0.02)
        return await patient, await asyncio.gather(*tasks)

    patient, answers = asyncio.run(asyncio.wait_for(flood(), 100))
    assert is_whole(patient)  # it says itself how long it waits
    refused = [answer for answer in answers if answer[0] == 429]
    assert len(refused) >= 30 and all(is_whole(answer) for answer in answers if answer[0] != 429)
    for _, headers, body in refused:
        assert int(headers["retry-after"]) >= 1
        assert '"code":"capacity_exceeded"' in body and "--max-queue-time" in body
