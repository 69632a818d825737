"""GET /stats: what the scheduler counts, once as JSON or again and again as server-sent events.

With `?blocks=1`, also who has the KV blocks: `requests`, rows of (id, phase, prompt, computed, output, blocks), and
`cells`, base64, one byte for every `blocks_per_cell` blocks.
"""

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
    with_blocks = request.query_params.get("blocks") == "1"
    if "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(_events(serving, request, with_blocks), {})
    return Response(msgspec.json.encode(await _snapshot(serving, with_blocks)), media_type="application/json")


async def _events(serving: Serving, request: Request, with_blocks: bool) -> AsyncIterator[tuple[bytes, bool]]:
    while not serving.is_closing.is_set() and not await request.is_disconnected():
        yield b"data: " + msgspec.json.encode(await _snapshot(serving, with_blocks)) + b"\n\n", True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving.is_closing.wait(), _INTERVAL_S)


async def _snapshot(serving: Serving, with_blocks: bool) -> dict[str, Any]:
    counts = dict(await serving.refresh_stats())
    blocks = await serving.block_owners() if with_blocks else {}
    own = {"model": serving.model, "num_requests": serving.num_requests, "trouble": serving.trouble}
    times = {"ttft_s": serving.metrics.recent_ttft_s, "itl_s": serving.metrics.recent_itl_s}
    return {**own, **times, "startup": serving.startup, **counts, **blocks}
