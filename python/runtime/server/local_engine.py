"""An engine in this process, behind the interface of one in a child."""

from __future__ import annotations

import asyncio

from runtime.config import EngineConfig
from runtime.engine import Engine, Knobs
from runtime.errors import RequestAborted
from runtime.server.client import EngineClient
from runtime.server.host import EngineHost
from runtime.server.messages import FromEngine, ToEngine


class LocalEngine(EngineClient):
    """Builds an engine when it is started.

    Args:
        knobs: for tests.
    """

    def __init__(self, config: EngineConfig, *, max_open: int | None = None, knobs: Knobs | None = None) -> None:
        super().__init__(max_open)
        self._config = config
        self._knobs = knobs or Knobs()
        self._engine: Engine | None = None
        self._host: EngineHost

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def send(message: FromEngine) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._receive, message)

        self._engine = await asyncio.to_thread(Engine, self._config, self._knobs)
        self._host = EngineHost(self._engine, send)
        self.info = self._host.info()

    async def close(self) -> None:
        if self._engine is None or self._is_closing:
            return
        self._is_closing = True
        self.fail_all(RequestAborted("the engine is closed"))
        self._host.close()
        await asyncio.to_thread(self._engine.close)

    def _send(self, message: ToEngine) -> None:
        self._host.handle(message)
