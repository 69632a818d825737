"""uvicorn's HTTP/1.1 protocols with the deadlines and bounds that they lack.

There are two: httptools, whose parser is llhttp, takes a fraction of the time of h11, which is pure Python and serves
where httptools cannot be installed. Both keep the same limits.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # a platform without wheels
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

MAX_HEADER_BYTES = 64 << 10


class _Deadlines:
    """Closes connections that do not get on: headers that take too long, answers that nobody reads.

    Goes before one of uvicorn's protocols among the bases. Subclassed by `with_limits`, which sets the limits: uvicorn
    makes one a connection and passes no more arguments.
    """

    header_timeout_s: float
    write_timeout_s: float
    max_connections: int

    # of uvicorn's
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: set[Any]
    app_state: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    @abstractmethod
    def awaits_headers(self) -> bool:
        """Between an answer and the headers of the next request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        # of which each request has a copy in its scope
        self.app_state = {**self.app_state, "arrived_at": time.monotonic()}
        super().data_received(data)  # type: ignore[misc]
        self._watch_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)  # type: ignore[misc]

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch_headers(self) -> None:
        """The time runs while a request's headers are awaited, however many bytes of them come."""
        if self.awaits_headers and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.close)
        elif not self.awaits_headers and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class H11Deadlines(_Deadlines, H11Protocol):
    """h11 bounds headers itself: uvicorn passes it `h11_max_incomplete_event_size`."""

    @property
    def awaits_headers(self) -> bool:
        return self.conn.their_state is h11.IDLE


PROTOCOLS: tuple[type[_Deadlines], ...] = (H11Deadlines,)  # the best one first

if HttpToolsProtocol is not None:

    class HttpToolsDeadlines(_Deadlines, HttpToolsProtocol):
        """Bounds what httptools would gather without end, and refuses what h11 does. An exception is a 400."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._in_headers = True
            self._num_header_bytes = 0  # of one request, trailers included
            self._num_unheard_bytes = 0  # since the last thing that the parser gave

        @property
        def awaits_headers(self) -> bool:
            return self._in_headers and (self.cycle is None or self.cycle.response_complete)

        def data_received(self, data: bytes) -> None:
            self._num_unheard_bytes += len(data)
            super().data_received(data)
            if self._num_unheard_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"more than {MAX_HEADER_BYTES} bytes of headers")

        def on_message_begin(self) -> None:
            self._num_header_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count_header_bytes(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count_header_bytes(len(name) + len(value))
            if self._in_headers:  # a trailer is not a header: it comes after all checks of those
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_headers, self._num_unheard_bytes = False, 0
            num_hosts = sum(name == b"host" for name, _ in self.headers)
            if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
                raise ValueError(f"{num_hosts} Host headers")
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._num_unheard_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_headers, self._num_unheard_bytes = True, 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            """Not into an answer that runs."""
            if self.pipeline or (self.cycle is not None and self._is_answering(self.cycle)):
                self.transport.close()
            else:
                super().send_400_response(msg)

        @staticmethod
        def _is_answering(cycle: Any) -> bool:
            return bool(cycle.response_started and not cycle.response_complete)

        def _count_header_bytes(self, count: int) -> None:
            self._num_header_bytes += count
            if self._num_header_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"more than {MAX_HEADER_BYTES} bytes of headers")

    PROTOCOLS = (HttpToolsDeadlines, H11Deadlines)


def with_limits(
    *,
    header_timeout_s: float,
    write_timeout_s: float,
    max_connections: int,
    protocol: type[_Deadlines] = PROTOCOLS[0],
) -> type[asyncio.Protocol]:
    """A protocol for `uvicorn.Config.http`."""
    limits = {
        "header_timeout_s": header_timeout_s,
        "write_timeout_s": write_timeout_s,
        "max_connections": max_connections,
    }
    return type("LimitedProtocol", (protocol,), limits)
