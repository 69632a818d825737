"""Both HTTP/1.1 parsers: what they let through, and what ends a connection."""

import asyncio
import contextlib
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from runtime.server.http_protocol import MAX_HEADER_BYTES, PROTOCOLS, with_limits

HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nX-One: 1\r\n"
SIZED = HEAD + b"Content-Length: 5\r\n\r\nhello"
TRAILERS = b"Authorization: Bearer stolen\r\nX-One: 2\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n" + TRAILERS + b"\r\n"
LAST = HEAD.replace(b"X-One: 1", b"Connection: close") + b"Content-Length: 0\r\n\r\n"
TIMEOUT_S = 30

both = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda found: found.__name__)


class Echo:
    """An application that answers with what it was asked. `seen` has the paths."""

    def __init__(self, delay_s=0.0):
        self.seen = []
        self._delay_s = delay_s

    async def __call__(self, scope, receive, send):
        self.seen.append(scope["raw_path"].decode())
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        found = {"path": self.seen[-1], "query": scope["query_string"].decode(), "headers": headers}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await asyncio.sleep(self._delay_s)
        answer = json.dumps({**found, "body": body.decode(), "arrived": scope["state"]["arrived_at"] > 0}).encode()
        await send({"type": "http.response.body", "body": answer[1:]})


@contextlib.asynccontextmanager
async def listening(protocol, app, header_timeout_s=TIMEOUT_S):
    """The port of a server."""
    kind = with_limits(header_timeout_s=header_timeout_s, write_timeout_s=30, max_connections=8, protocol=protocol)
    config = uvicorn.Config(
        app, http=kind, log_config=None, h11_max_incomplete_event_size=MAX_HEADER_BYTES, ws="none", proxy_headers=False
    )
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def exchange(protocol, parts, *, app=None, pause_s=0.0, **limits):
    """All that is answered to these bytes until the server ends the connection."""

    async def main():
        async with listening(protocol, app or Echo(), **limits) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
            found = b""
            with contextlib.suppress(ConnectionError):
                while part := await asyncio.wait_for(reader.read(1 << 16), TIMEOUT_S):
                    found += part
            writer.close()
            return found

    return asyncio.run(main())


def bodies(answer):
    """Of chunked answers, in their order."""
    found = []
    for one in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]:
        lines = one.partition(b"\r\n\r\n")[2].split(b"\r\n")
        found.append(json.loads(b"".join(lines[1::2])))
    return found


@both
@pytest.mark.parametrize("request_bytes", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_a_request_is_understood_in_any_pieces(protocol, request_bytes):
    pieces = [request_bytes[i : i + 1] for i in range(len(request_bytes))]
    for parts in ([request_bytes], pieces, [request_bytes[:70], request_bytes[70:]]):
        found, _ = bodies(exchange(protocol, [*parts, LAST]))
        assert (found["path"], found["query"], found["body"], found["arrived"]) == ("/a", "b=c", "hello", True)
        names = [name for name, _ in found["headers"]]
        assert "authorization" not in names and names.count("x-one") == 1  # trailers are no headers


@both
def test_requests_behind_each_other_are_answered_in_order(protocol):
    parts = [SIZED.replace(b"/a", f"/{i}".encode()) for i in range(5)]
    found = bodies(exchange(protocol, [b"".join(parts) + LAST]))
    assert [one["path"] for one in found] == ["/0", "/1", "/2", "/3", "/4", "/a"]


CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@both
@pytest.mark.parametrize(
    "begin, unit",
    [
        (HEAD, b"x-header: y\r\n"),
        (HEAD + b"x: ", b"y"),
        (HEAD, b"y"),
        (b"GET /", b"y"),
        (b"", b"y"),
        (CHUNKS + b"0\r\n", b"x-header: y\r\n"),
        (CHUNKS + b"0\r\nx: ", b"y"),
        (CHUNKS + b"1;", b"y"),
        (SIZED + HEAD + b"x: ", b"y"),
    ],
    ids=["headers", "value", "name", "path", "method", "trailers", "trailer", "extension", "second request"],
)
def test_what_is_gathered_is_bounded(protocol, begin, unit):
    """Without end: the server is who ends it, and soon. asyncio reads at most 256 KiB at once."""
    piece = unit * (32768 // len(unit))
    num_sent = 0

    def pieces():
        nonlocal num_sent
        yield begin
        while num_sent < 64 << 20:
            num_sent += len(piece)
            yield piece

    answer = exchange(protocol, pieces())
    assert answer.count(b" 200 OK") <= begin.startswith(SIZED)
    assert num_sent < 16 << 20  # what the kernel's buffers take included


@both
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\na",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: \x00\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(protocol, request_bytes):
    app = Echo()
    answer = exchange(protocol, [request_bytes], app=app)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert not app.seen


@both
def test_a_bad_request_does_not_spoil_the_answer_before_it(protocol):
    answer = exchange(protocol, [SIZED, b"\x00\x01 garbage\r\n\r\n"], app=Echo(delay_s=0.3), pause_s=0.1)
    first, _, _ = answer.partition(b"0\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK") and b" 400 " not in first


@both
@pytest.mark.parametrize("parts", [[b""], [HEAD], [SIZED], [SIZED, HEAD]], ids=["none", "half", "one", "one and half"])
def test_headers_have_a_deadline(protocol, parts):
    answer = exchange(protocol, parts, header_timeout_s=0.2)
    assert len(bodies(answer)) == (SIZED in parts)


@both
def test_the_deadline_of_headers_does_not_run_while_a_request_is_answered(protocol):
    half = len(SIZED) - 2
    answer = exchange(protocol, [SIZED[:half], SIZED[half:]], app=Echo(delay_s=0.5), pause_s=0.5, header_timeout_s=0.2)
    assert bodies(answer)[0]["body"] == "hello"


@pytest.mark.skipif(len(PROTOCOLS) == 1, reason="h11 bounds what is not complete yet")
@pytest.mark.parametrize("trailers", [False, True])
def test_headers_that_come_whole_are_bounded_too(trailers):
    long = b"x: " + b"y" * (MAX_HEADER_BYTES + 1) + b"\r\n\r\n"
    answer = exchange(PROTOCOLS[0], [CHUNKS + b"0\r\n" + long if trailers else HEAD + long])
    assert b" 200 OK" not in answer
