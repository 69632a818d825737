"""What a hostile or broken client can do to itself, and cannot do to others."""

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from runtime.server.config import ServerConfig
from runtime.server.http_errors import HttpError
from runtime.server.json_body import MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, check_structure
from runtime.server.queue_wait import QueueWait
from runtime.server.run import bind

LONG = {"prompt": "1+1=", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}
LIMITS = ("--header-timeout", 1, "--body-timeout", 1, "--write-timeout", 1, "--max-body-bytes", 100_000)


def post(client, content, **headers):
    return client.post("/v1/completions", content=content, headers={"content-type": "application/json", **headers})


def request(body):
    """The bytes of a POST to /v1/completions."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def check(body):
    """The code of what is wrong with a body's structure; None: nothing."""
    try:
        check_structure(body)
    except HttpError as error:
        return error.error_code


def test_json_depth_is_bounded():
    def is_shallow(body):
        return check(body) is None

    def nested(depth, left=b"[", right=b"]"):
        return left * depth + right * depth

    for left, right in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
        levels = len(left.replace(b'"a":', b""))
        deepest = MAX_DEPTH // levels
        inner = b"1" if left.endswith(b":") else b""
        assert is_shallow(left * deepest + inner + right * deepest)
        assert not is_shallow(left * (deepest + 1) + inner + right * (deepest + 1))
    wide = b"[" + b",".join([nested(10)] * 1000) + b"]"
    assert is_shallow(wide)
    assert is_shallow(json.dumps({"a": "[" * 1000 + '\\"' + "{" * 1000}).encode())
    started = time.perf_counter()
    for unit in (b"[", b"[]", b'"\\', b'"', b"\\", b'"",', b"1,", b'{"a":'):
        check(unit * ((8 << 20) // len(unit)))
    assert time.perf_counter() - started < 10  # linear: quadratic time would be hours


def test_json_structure_is_found_outside_of_strings_alone():
    """Whatever lies where a body is cut into pieces."""
    rng = random.Random(0)
    noise = ["[", "]", "{", "}", ",", ":", '"', "\\", "\\\\", '\\"', "a", "\n", "\u20ac"]
    for _ in range(8):
        texts = ["".join(rng.choices(noise, k=rng.randrange(40_000))) for _ in range(12)]
        body = {"a": texts, "b": [{text[:20]: 1} for text in texts]}
        assert check(json.dumps(body).encode()) is None
        assert check(json.dumps(body, ensure_ascii=False).encode()) is None
        deep = json.dumps([*texts, json.loads("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))])
        assert check(deep.encode()) is None and check(f"[{deep}]".encode()) == "json_too_deep"


def test_the_number_of_json_values_is_bounded():
    for unit, limit in (
        (b"1,", MAX_VALUES),
        (b'"ab",', MAX_VALUES),
        (b"[],", MAX_CONTAINERS),
        (b'{"a":1},', MAX_CONTAINERS // 2),
    ):
        assert check(b"[" + unit * (limit - 1) + b"1]") is None
        assert check(b"[" + unit * (limit + 1) + b"1]") == "json_too_large"
    text = json.dumps({"prompt": "a,[]{}:" * MAX_VALUES}).encode()
    assert check(text) is None


@pytest.mark.parametrize(
    "body, status, code",
    [
        (b"[" * 100_000, 400, "json_too_deep"),
        (b'{"a":' * 100_000, 400, "json_too_deep"),
        (b'{"prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "json_too_deep"),
        (b'{"prompt":[' + b"1," * MAX_VALUES + b"1,1]}", 400, "json_too_large"),
        (b'{"prompt":"' + b"a" * (7 << 20) + b'"}', 400, "invalid_request"),
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b'{"prompt": "\xff"}', 400, "invalid_json"),
        (b'{"prompt": NaN}', 400, "invalid_json"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, None),
        (b'{"prompt": "\\ud800"}', 400, None),
        (b'{"prompt": "a", "n": 123456789012345678901234567890}', 400, None),
    ],
)
def test_bad_bodies_are_refused(client, body, status, code):
    response = post(client, body)
    assert response.status_code == status, response.text
    if code is not None:
        assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    "text, said",
    [
        (r"\ud800", r"\ud800 (byte 12)"),  # which a parser may take for an end that is missing
        (r"ab\udbff c" + "d" * 50, r"\udbff (byte 14)"),
        (r"\uDC00", r"\uDC00 (byte 12)"),
        (r"\ud83d\ude00\ud83d", r"\ud83d (byte 24)"),
        (r"\ud83d\ud83d\ude00", r"\ud83d (byte 12)"),
        (r"\ud83d\ude00\ude00", r"\ude00 (byte 24)"),
        (r"\\\ud800", r"\ud800 (byte 14)"),
        (r"\ud800\n", r"\ud800 (byte 12)"),
    ],
)
def test_half_a_surrogate_pair_is_named(client, text, said):
    response = post(client, b'{"prompt": "' + text.encode() + b'"}')
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "invalid_json"
    assert f"the body is not JSON: {said} is half of a surrogate pair" in error["message"]


@pytest.mark.parametrize("body", [b'{"prompt": "a', b'{"prompt": "\\ud83d', b'{"prompt": "\\\\ud800', b"{x \\ud800}"])
def test_other_broken_json_is_not_called_a_surrogate(client, body):
    message = post(client, body).json()["error"]["message"]
    assert "not JSON" in message and "surrogate" not in message


def test_bodies_are_bounded(client, start_server, wait_for):
    limited = start_server(*LIMITS)
    with httpx.Client(base_url=limited.url) as other:
        assert other.post("/v1/completions", json={"prompt": "x" * 99_000}).status_code == 400  # too many tokens
        response = post(other, b'{"prompt": "' + b"x" * 200_000 + b'"}')
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"

        def chunks():
            for _ in range(30):
                yield b" " * 10_000

        assert post(other, chunks()).status_code == 413  # without a content-length
        assert other.get("/health").status_code == 200
    with socket.create_connection(("127.0.0.1", limited.port), timeout=20) as connection:
        connection.sendall(request(LONG).replace(b"Length: ", b"Length: 10000000")[:-5])  # a gigabyte, so it says
        assert b" 413 " in _read(connection)
    wrong_type = client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert wrong_type.status_code == 415
    _deadlines(limited, wait_for)


def test_a_gigabyte_is_not_read(start_server, wait_for):
    limited = start_server(*LIMITS)
    before = memory_bytes(limited.process.pid)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with socket.create_connection(("127.0.0.1", limited.port), timeout=20) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        num_sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                connection.sendall(chunk)
                num_sent += 1
    assert num_sent < 256
    assert memory_bytes(limited.process.pid) - before < 32 << 20
    with httpx.Client(base_url=limited.url) as other:
        assert other.get("/health").status_code == 200


def memory_bytes(pid):
    """Anonymous memory of a process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10


def test_bodies_are_bounded_together(start_server, wait_for):
    """Those that have arrived and are not with the engine yet."""
    limited = start_server("--max-pending-body-bytes", 200_000)
    whole = request({"prompt": "12+35=", "temperature": 0, "x": "y" * 150_000})
    whole = whole.replace(b"Host:", b"Connection: close\r\nHost:", 1)
    with (
        socket.create_connection(("127.0.0.1", limited.port), timeout=20) as slow,
        httpx.Client(base_url=limited.url) as client,
    ):
        slow.sendall(whole[:-1000])

        def is_held():
            response = client.post("/v1/completions", json={"prompt": "12+35=", "x": "y" * 150_000})
            if response.status_code == 200:
                return False
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "capacity_exceeded"
            return "--max-pending-body-bytes" in response.json()["error"]["message"]

        wait_for(is_held)
        small = client.post("/v1/completions", json={"prompt": "12+35=", "temperature": 0})
        assert small.json()["choices"][0]["text"] == "47"  # there is room for it
        slow.sendall(whole[-1000:])
        assert b'"text":"47"' in _read(slow)
        # all of it was given back: by answers, refusals, and clients that went away
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", limited.port), timeout=20) as gone:
                gone.sendall(whole[:-1000])
        wait_for(lambda: not is_held())


def test_small_answers_do_not_wait_for_an_acknowledgement():
    """Nagle's algorithm is off on the connections of the socket that the server listens on."""

    async def main():
        accepted = asyncio.get_running_loop().create_future()
        with bind(ServerConfig(port=0)) as listener:
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            found = (await accepted).get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for one in (writer, accepted.result()):
                one.close()
            server.close()
            return found

    assert asyncio.run(main()) != 0


def _deadlines(limited, wait_for):
    """Headers, bodies and answers must get on, or the connection ends."""

    def connect(*parts):
        connection = socket.create_connection(("127.0.0.1", limited.port), timeout=20)
        for part in parts:
            connection.sendall(part)
        return connection

    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    # nothing; half a header; one request and half of the next
    first = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for parts in ((b"",), (head,), (first, head)):
        with connect(*parts) as connection:
            assert _ends(connection)
    # a header line every now and then does not help
    with connect(b"GET / HTTP/1.1\r\n") as connection:
        started = time.monotonic()
        while time.monotonic() - started < 15:
            try:
                connection.sendall(b"x: y\r\n")
            except OSError:
                break
            time.sleep(0.1)
        assert time.monotonic() - started < 10
    with connect(head + b"Content-Length: 50\r\n\r\n{") as connection:
        assert b" 408 " in _read(connection)
    # more headers than allowed, or one that is longer
    bombs = [f"x-{i}: {'y' * 100}\r\n".encode() for i in range(2000)], [b"x: ", *[b"y" * 1000] * 2000, b"\r\n"]
    for bomb in bombs:
        with connect(b"GET / HTTP/1.1\r\n") as connection:
            with contextlib.suppress(OSError):
                for part in bomb:
                    connection.sendall(part)
            assert b"200 OK" not in _read(connection)
    with httpx.Client(base_url=limited.url) as other:
        assert other.get("/health").status_code == 200


def _read(connection):
    """Until the other end closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def _ends(connection):
    _read(connection)  # a socket timeout is a failure
    return True


def test_a_slow_reader_is_dropped_and_its_request_aborted(start_server, wait_for):
    limited = start_server(*LIMITS)
    body = {**LONG, "n": 16, "stream": True, "logprobs": 20}
    with socket.socket() as connection, httpx.Client(base_url=limited.url, timeout=30) as other:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", limited.port))
        connection.sendall(request(body))
        wait_for(lambda: other.get("/stats").json()["num_requests"] == 1)
        wait_for(lambda: other.get("/stats").json()["num_requests"] == 0, 40)
        stats = wait_for(lambda: (s := other.get("/stats").json())["num_running"] == 0 and s)
        assert stats["num_free_blocks"] == stats["num_blocks"]
        assert stats["num_output_tokens"] < 16 * 1000  # aborted, not finished
        assert other.post("/v1/completions", json={"prompt": "12+35=", "temperature": 0}).status_code == 200


def test_a_half_closed_connection_ends(client, server, wait_for):
    whole = request(LONG)
    for sent in (whole, whole[:-5], whole[:20]):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert _ends(connection)
    wait_for(lambda: client.get("/stats").json()["num_requests"] == 0)


def test_overload_is_refused_with_a_time_to_come_again(start_server):
    small = start_server("--max-num-seqs", 1, "--max-queued-requests", 1)
    body = {**LONG, "stream": True}
    with httpx.Client(base_url=small.url, timeout=30) as client:
        with client.stream("POST", "/v1/completions", json=body), client.stream("POST", "/v1/completions", json=body):
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert client.post("/v1/completions", json={**body, "n": 5}).status_code == 429
            assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json={"prompt": "12+35="}).status_code in (200, 429)


def test_who_would_wait_too_long_is_refused(start_server, wait_for):
    small = start_server("--max-num-seqs", 1, "--max-queue-time", 0.5)
    body = {**LONG, "stream": True}
    with httpx.Client(base_url=small.url, timeout=30) as client, contextlib.ExitStack() as stack:
        for _ in range(10):  # now it knows how fast requests start
            assert client.post("/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200
        for _ in range(6):
            stack.enter_context(client.stream("POST", "/v1/completions", json=body))

        def refused():
            response = client.post("/v1/completions", json={**LONG, "max_tokens": 1, "deadline_s": 1})
            return response if response.status_code == 429 else None

        response = wait_for(refused)
        assert "--max-queue-time is 0.5 s" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1


def test_the_expected_wait_is_that_of_a_queue():
    now = [0.0]
    wait = QueueWait(clock=lambda: now[0])
    for i in range(20):  # one at a time, each starts after 0.1 s; then nobody for an hour
        wait.arrive(i, 1)
        now[0] += 0.1
        wait.start(i)
        assert not wait.exceeds(0.01)
    now[0] += 3600
    for i in range(100, 150):
        wait.arrive(i, 1)
    assert wait.expected_s() == pytest.approx(5, rel=0.1)
    assert not wait.exceeds(4)  # it may be a burst that starts at once
    for i in range(100, 110):
        now[0] += 0.1
        wait.start(i)
    assert wait.expected_s() == pytest.approx(4, rel=0.1)
    assert wait.exceeds(3) and not wait.exceeds(5)
    for i in range(110, 150):
        wait.leave(i)
        wait.leave(i)
    assert wait.expected_s() == 0 and not wait.exceeds(0.01)


def test_deadlines_end_requests(client, start_server):
    response = client.post("/v1/completions", json={**LONG, "deadline_s": 0.05})
    assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
    text = client.post("/v1/completions", json={**LONG, "deadline_s": 0.2, "stream": True}).text
    last = json.loads(text.strip().rsplit("data: ", 1)[1])
    assert last["error"]["code"] == "deadline_exceeded" and "[DONE]" not in text


def test_headers_say_priority_and_tenant(client):
    body = {"prompt": "12+35=", "temperature": 0}
    assert client.post("/v1/completions", json=body, headers={"x-priority": "-3", "x-tenant": "a"}).status_code == 200
    for headers in ({"x-priority": "high"}, {"x-tenant": "t" * 300}):
        response = client.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 400 and response.json()["error"]["param"] in ("priority", "tenant")
