"""Draining, and what happens when things break."""

import collections
import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

NUM_ABORTS = int(os.environ.get("RUNTIME_TEST_ABORTS", 150))
ABORTS_AT_ONCE = 1000
LONG = {"prompt": "1+1=", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}


class Reader(threading.Thread):
    """Reads a stream to its end, or to its error."""

    def __init__(self, url, **body):
        super().__init__(daemon=True)
        self.started, self.text, self.status, self.error = threading.Event(), "", None, None
        self._url, self._body = url, {**LONG, "stream": True, **body}
        self.start()
        assert self.started.wait(30)

    def run(self):
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=self._body, timeout=60) as response:
                self.status = response.status_code
                for part in response.iter_text():
                    self.text += part
                    self.started.set()
        except httpx.HTTPError as error:
            self.error = error
        self.started.set()

    @property
    def last_event(self):
        return json.loads(self.text.strip().rsplit("data: ", 1)[1])


def status_of(url, path):
    return httpx.get(url + path, timeout=10).status_code


def gone(pid):
    """No such process, or one that only its parent still remembers."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_drained_server_finishes_what_runs_and_ends_with_0(start_server, wait_for):
    server = start_server()
    engine = server.engine_pid
    readers = [Reader(server.url, max_tokens=300) for _ in range(3)]
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: status_of(server.url, "/ready") == 503)
    assert status_of(server.url, "/health") == 200
    refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
    assert "retry-after" in refused.headers
    assert server.wait(60) == 0
    for reader in readers:
        reader.join(10)
        assert reader.text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in reader.text
    wait_for(lambda: gone(engine))


def test_a_second_signal_ends_it_at_once(start_server, wait_for):
    server = start_server()
    engine = server.engine_pid
    reader = Reader(server.url)
    server.process.send_signal(signal.SIGINT)
    wait_for(lambda: status_of(server.url, "/ready") == 503)
    signalled_at = time.monotonic()
    assert server.stop(signal.SIGINT) == 130
    assert time.monotonic() - signalled_at < 1.5
    reader.join(10)
    assert "[DONE]" not in reader.text
    wait_for(lambda: gone(engine))


def test_draining_has_a_deadline(start_server):
    server = start_server("--drain-timeout", 0.2)
    reader = Reader(server.url, n=4)
    assert server.stop() == 0
    reader.join(10)
    assert reader.last_event["error"]["code"] == "request_aborted" and "[DONE]" not in reader.text


def test_a_signal_while_the_model_loads(start_server, wait_for):
    server = start_server(ready=False)

    def engine():
        with contextlib.suppress(AssertionError):  # not yet
            return server.engine_pid

    wait_for(engine, timeout_s=60)
    assert server.stop() == 0
    assert server.url is None and not any("Traceback" in line for line in server.lines)


@pytest.mark.parametrize("busy", [True, False])
def test_a_killed_engine_reaches_every_client_and_ends_the_server_with_70(start_server, busy):
    server = start_server()
    readers = [Reader(server.url) for _ in range(4)] if busy else []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        whole = pool.submit(httpx.post, f"{server.url}/v1/completions", json=LONG, timeout=60) if busy else None
        if busy:
            time.sleep(0.2)
        os.kill(server.engine_pid, signal.SIGKILL)
        killed_at = time.monotonic()
        for reader in readers:
            reader.join(10)
            assert reader.last_event["error"]["code"] == "engine_dead"
            assert "SIGKILL" in reader.last_event["error"]["message"] and "[DONE]" not in reader.text
        if whole is not None:
            response = whole.result(10)
            assert response.status_code == 503 and response.json()["error"]["code"] == "engine_dead"
        assert time.monotonic() - killed_at < 2
    assert server.wait() == 70
    assert server.lines[-1] == "runtime: the engine has stopped: the engine's process was killed by SIGKILL"


def test_a_stopped_engine_shows_in_health(start_server, wait_for):
    step_timeout_s = 6  # half of it is silence, half is left for the questions below: past it the step has failed
    server = start_server("--step-timeout", step_timeout_s)
    engine = server.engine_pid
    Reader(server.url)
    os.kill(engine, signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        wait_for(lambda: status_of(server.url, "/health") == 503)
        assert time.monotonic() - stopped_at < step_timeout_s
        assert status_of(server.url, "/health/live") == 200 and status_of(server.url, "/ready") == 503
        assert status_of(server.url, "/metrics") == status_of(server.url, "/stats") == 200  # the last counts
    finally:
        os.kill(engine, signal.SIGCONT)
    wait_for(lambda: status_of(server.url, "/health") == 200)
    assert status_of(server.url, "/ready") == 200


def test_a_killed_server_leaves_no_engine(start_server, wait_for):
    server = start_server()
    engine = server.engine_pid
    Reader(server.url)
    server.kill()
    wait_for(lambda: gone(engine))


def test_logs_as_json(start_server):
    server = start_server("--log-format", "json", "--log-level", "info")
    httpx.get(f"{server.url}/version", headers={"x-request-id": "seen"})
    assert server.stop() == 0
    rows = [json.loads(line) for line in server.lines if line.startswith("{")]
    (row,) = [row for row in rows if row.get("request_id") == "seen"]
    assert row["method"] == "GET" and row["path"] == "/version" and row["status"] == 200 and row["ms"] >= 0
    assert row["level"] == "info" and row["time"].endswith("Z")


COMPLETIONS = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def go_away(port, seed):
    """Sends a request and leaves at a random moment: while it waits, computes its prompt, or answers."""
    rng = random.Random(seed)
    lengths = {"n": rng.choice([1, 1, 3]), "max_tokens": rng.choice([10, 100, 1000])}
    body = json.dumps({**LONG, **lengths, "prompt": f"{seed}+1=", "stream": rng.random() < 0.5}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (COMPLETIONS, len(body), body))
        connection.settimeout(rng.choice([0.01, 0.05, 0.2]))
        with contextlib.suppress(TimeoutError):
            for _ in range(rng.randrange(20)):
                connection.recv(65536)


def outcomes(client):
    """How requests have ended, with their numbers."""
    found = re.findall(r'^runtime:requests_total{outcome="(\w+)"} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    return collections.Counter({outcome: int(float(count)) for outcome, count in found})


def test_an_abort_storm_leaves_nothing(client, server, wait_for):
    """However many have gone away, afterwards every block is free."""
    before = outcomes(client)

    def settled():
        stats = client.get("/stats").json()
        return stats["num_running"] == stats["num_waiting"] == stats["num_requests"] == 0 and stats

    for first in range(0, NUM_ABORTS, ABORTS_AT_ONCE):
        seeds = range(first, min(first + ABORTS_AT_ONCE, NUM_ABORTS))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda seed: go_away(server.port, seed), seeds))
        stats = wait_for(settled, 30)
        assert stats["num_free_blocks"] == stats["num_blocks"] and stats["trouble"] is None
    ended = outcomes(client) - before
    assert set(ended) <= {"aborted", "finished"} and ended["aborted"] > NUM_ABORTS / 2
    found = client.post("/v1/completions", json={"prompt": "12+35=", "temperature": 0}).json()
    assert found["choices"][0]["text"] == "47"
