"""An HTTP/1.1 client that does as little as possible between a packet and its time stamp.

h11 does the protocol; an answer's bytes reach its `Answer` in the callback of the socket, without a task in between.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from runtime.errors import ConfigError

_MAX_HEAD_BYTES = 64 << 10
_MAX_IDLE_S = 2.0  # servers close idle connections, the impatient ones after 5 s
_CONNECT_TIMEOUT_S = 10.0


class TransferError(Exception):
    """An exchange that did not end as HTTP says. `kind` is one word, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Url:
    """Where a server's API is; `path` ends in /v1."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """
        Raises:
            ConfigError: it is no http or https URL.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--base-url={text}: {error}", hint=_EXAMPLE) from None
        extras = parts.username or parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x7e]+", text)
        if parts.scheme not in ("http", "https") or not parts.hostname or extras:
            raise ConfigError(f"--base-url={text}: must be http://HOST:PORT or https://HOST", hint=_EXAMPLE)
        path = parts.path.rstrip("/")
        return cls(
            parts.scheme,
            parts.hostname,
            port or (443 if parts.scheme == "https" else 80),
            path if path.endswith("/v1") else f"{path}/v1",
        )

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


_EXAMPLE = "such as http://127.0.0.1:8000"


class Answer:
    """One answer, as it arrives. Times are `time.perf_counter()`."""

    def on_head(self, status: int, headers: Mapping[str, str], now: float) -> None:
        """Header names are in lower case."""

    def on_data(self, data: bytes, now: float) -> None:
        """A part of the body."""


@dataclass
class Body(Answer):
    """An answer that is wanted as a whole."""

    status: int = 0
    data: bytearray = field(default_factory=bytearray)

    def on_head(self, status: int, headers: Mapping[str, str], now: float) -> None:
        self.status = status

    def on_data(self, data: bytes, now: float) -> None:
        self.data += data


class Connection(asyncio.Protocol):
    """One exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.is_open = True
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._transport: asyncio.Transport
        self._answer: Answer | None = None
        self._failure: TransferError | None = None
        self._done: asyncio.Future[None]

    def exchange(self, request: h11.Request, body: bytes, answer: Answer) -> asyncio.Future[None]:
        """Sends at once; the future has a TransferError where the answer is none."""
        self._answer, self._done = answer, asyncio.get_running_loop().create_future()
        if self._failure is not None:  # before it was asked for anything
            self._end(self._failure)
            return self._done
        parts = [self._http.send(request), self._http.send(h11.Data(body)), self._http.send(h11.EndOfMessage())]
        self._transport.write(b"".join(part for part in parts if part))
        return self._done

    @property
    def is_reusable(self) -> bool:
        return self.is_open and self._http.our_state is h11.IDLE

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()

    # ---- called by the loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._receive(data, time.perf_counter())

    def eof_received(self) -> None:
        self._receive(b"", time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._end(TransferError("cut", f"the connection was lost: {error or 'closed by the server'}"))

    def _receive(self, data: bytes, now: float) -> None:
        try:
            self._http.receive_data(data)
            while self._take(self._http.next_event(), now):
                pass
        except h11.RemoteProtocolError as error:
            kind = "garbage" if data else "cut"
            self._end(TransferError(kind, f"{'not HTTP' if data else 'the connection was cut'}: {error}"))
            self.close()

    def _take(self, event: Any, now: float) -> bool:
        """Whether there may be more."""
        answer = self._answer
        if isinstance(event, h11.Data) and answer is not None:
            answer.on_data(bytes(event.data), now)
        elif isinstance(event, h11.Response) and answer is not None:
            answer.on_head(event.status_code, {k.decode(): v.decode("latin-1") for k, v in event.headers}, now)
        elif isinstance(event, h11.EndOfMessage):
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
            self._end(None)
        return not (event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed))

    def _end(self, error: TransferError | None) -> None:
        self._failure = self._failure or error
        if self._answer is None:
            return
        self._answer = None
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


def allow_many_connections() -> None:
    """Raises the limit of open files of this process, and of those that it starts, as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HttpClient:
    """Keeps connections open between requests, as clients do.

    Args:
        headers: of every request.
    """

    def __init__(self, url: Url, headers: Mapping[str, str]) -> None:
        self.url = url
        self._headers = [("host", url.authority), *headers.items()]
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._idle: list[Connection] = []

    async def request(
        self,
        method: str,
        path: str,
        body: bytes,
        answer: Answer,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """One exchange; a path that begins with / is the server's, any other the API's.

        Raises:
            TransferError: kind "connect", "cut", "garbage" or "timeout".
        """
        target = path if path.startswith("/") else f"{self.url.path}/{path}"
        sized = [*self._headers, *(headers or {}).items(), ("content-length", str(len(body)))]
        request = h11.Request(method=method, target=target, headers=sized)
        connection = self._take_idle() or await self._connect()
        try:
            await asyncio.wait_for(connection.exchange(request, body, answer), timeout_s)
        except asyncio.TimeoutError:
            raise TransferError("timeout", f"no complete answer within {timeout_s:g} s") from None
        finally:
            self._put_back(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(Connection, self.url.host, self.url.port, ssl=self._ssl)
        try:
            return (await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S))[1]
        except asyncio.TimeoutError:
            reason = f"no answer within {_CONNECT_TIMEOUT_S:g} s"
        except OSError as error:
            is_system = error.errno is not None and not isinstance(error, socket.gaierror)
            reason = os.strerror(error.errno or 0) if is_system else str(error.strerror or error)
        raise TransferError("connect", f"cannot connect to {self.url.host} port {self.url.port}: {reason}")

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and time.monotonic() - connection.idle_since < _MAX_IDLE_S:
                return connection
            connection.close()
        return None

    def _put_back(self, connection: Connection) -> None:
        if not connection.is_reusable:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
