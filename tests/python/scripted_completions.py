"""A server on loopback that answers completions byte for byte as a test's script says, good or bad."""

import asyncio
import contextlib
import json
import threading


class ScriptedServer:
    """Answers the n-th completion (from 0) as `script(n, answer)` does.

    Attributes:
        requests: (headers, body) of each completion.
        num_connections: since the start.
    """

    def __init__(self, script, *, lists_models=True):
        self.requests, self.num_connections = [], 0
        self._models = (200, {"data": [{"id": "scripted", "owned_by": "a script"}]}) if lists_models else (404, {})
        self._script = script
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def close(self):
        self._loop.call_soon_threadsafe(self._end.cancel)
        self._thread.join(10)

    def _run(self):
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self):
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._end = self._loop.create_future()
        self._ready.set()
        await self._end

    async def _connection(self, reader, writer):
        self.num_connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers["content-length"]))
                answer = Answer(writer)
                if head[0].startswith("GET /v1/models"):
                    answer.whole(*self._models)
                    continue
                self.requests.append((headers, json.loads(body)))
                await self._script(len(self.requests) - 1, answer)
        writer.close()


class Answer:
    def __init__(self, writer):
        self._writer = writer

    def raw(self, data):
        self._writer.write(data)

    def close(self):
        self._writer.close()

    def whole(self, status, body, headers=""):
        data = json.dumps(body).encode()
        self.raw(f"HTTP/1.1 {status} x\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data)

    def begin(self):
        self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    def event(self, data):
        line = b"data: %s\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode())
        self.raw(b"%x\r\n%s\r\n" % (len(line), line))

    def token(self):
        self.event({"choices": [{"index": 0, "text": "x"}]})

    def end(self, num_tokens=3):
        self.event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": num_tokens}})
        self.event(b"[DONE]")
        self.raw(b"0\r\n\r\n")

    def good(self, num_tokens=3):
        self.begin()
        for _ in range(num_tokens):
            self.token()
        self.end(num_tokens)
