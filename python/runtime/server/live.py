"""GET /stats: what the scheduler counts, once as JSON or again and again as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from runtime.server.generation import EventStream
from runtime.server.serving import Serving

_INTERVAL_S = 0.5


async def stats(request: Request) -> Response:
    serving: Serving = request.app
    if "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(_events(serving, request), {})
    return Response(msgspec.json.encode(await _snapshot(serving)), media_type="application/json")


async def _events(serving: Serving, request: Request) -> AsyncIterator[bytes]:
    while not serving.is_closing.is_set() and not await request.is_disconnected():
        yield b"data: " + msgspec.json.encode(await _snapshot(serving)) + b"\n\n"
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving.is_closing.wait(), _INTERVAL_S)


async def _snapshot(serving: Serving) -> dict[str, Any]:
    counts = dict(await serving.refresh_stats())
    return {"model": serving.model, "num_requests": serving.num_requests, "trouble": serving.trouble, **counts}
