"""uvicorn's HTTP/1.1 protocol with the deadlines that it lacks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 64 << 10


class DeadlineProtocol(H11Protocol):
    """Closes connections that do not get on: headers that take too long, answers that nobody reads.

    Subclassed by `with_limits`, which sets the limits: uvicorn makes one a connection and passes no more arguments.
    """

    header_timeout_s: float
    write_timeout_s: float
    max_connections: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        arrived_at = time.monotonic()
        super().data_received(data)
        if self.scope is not None:
            self.scope["state"].setdefault("arrived_at", arrived_at)  # its task has not run yet
        self._watch_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch_headers(self) -> None:
        """The time runs while a request's headers are awaited, however many bytes of them come."""
        awaited = self.conn.their_state is h11.IDLE
        if awaited and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.close)
        elif not awaited and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def with_limits(*, header_timeout_s: float, write_timeout_s: float, max_connections: int) -> type[DeadlineProtocol]:
    limits = {
        "header_timeout_s": header_timeout_s,
        "write_timeout_s": write_timeout_s,
        "max_connections": max_connections,
    }
    return type("LimitedProtocol", (DeadlineProtocol,), limits)
