"""One server's life: bind, start the engine, listen, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn

from runtime.config import BUILTIN_LINE, EngineConfig
from runtime.errors import ConfigError, RequestAborted
from runtime.log import get_logger
from runtime.server.app import make_app
from runtime.server.config import ServerConfig
from runtime.server.engine_process import EngineProcess
from runtime.server.heap import leave_out_of_collections, return_large_blocks
from runtime.server.http_protocol import MAX_HEADER_BYTES, with_limits
from runtime.server.serving import Serving
from runtime.start_timer import StartTimer
from runtime.tokenizer import Tokenizer

logger = get_logger(__name__)

EXIT_FORCED = 130
_ANSWER_TIMEOUT_S = 1.5  # for the error bodies of requests that did not finish
_CLOSE_TIMEOUT_S = 1
_SWITCH_INTERVAL_S = 2e-4  # what the event loop may wait for a thread that runs Python
_BACKLOG = 2048
_BUILTIN_NAME = "builtin"


class HttpServer(uvicorn.Server):
    """Leaves the signals to `Lifecycle`.

    Args:
        on_listening: called once connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def drop_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class Lifecycle:
    """From the first signal, or the engine's death, to the end.

    The first SIGTERM or SIGINT: no new requests, running ones finish. The second: everything ends at once.
    """

    def __init__(self, drain_timeout_s: float | None) -> None:
        self.status = 0
        self._drain_timeout_s = drain_timeout_s
        self._asked = asyncio.Event()
        self._forced = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    async def start(self, engine: EngineProcess) -> bool:
        """Starts the engine; False: a signal came first, and it was ended."""
        starting, asked = asyncio.create_task(engine.start()), asyncio.create_task(self._asked.wait())
        first: set[asyncio.Future[Any]] = {starting, asked}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not starting.done():
            engine.kill()
            starting.cancel()
            return False
        await starting
        return True

    async def run(self, serving: Serving, engine: EngineProcess, server: HttpServer) -> None:
        """Waits for a reason to end, then ends the server."""
        asked = asyncio.create_task(self._asked.wait())
        reasons: set[asyncio.Future[Any]] = {asked, engine.dead}
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        serving.is_draining = True
        if not engine.dead.done():
            logger.info("draining: %d requests run", serving.num_requests)
            await self._wait_for_requests(serving, engine, self._drain_timeout_s)
        engine.fail_all(RequestAborted("the server is shutting down"))  # those that the time was too short for
        await self._wait_for_requests(serving, engine, _ANSWER_TIMEOUT_S)
        serving.is_closing.set()
        if self._forced.is_set():
            self.status = EXIT_FORCED
            server.force_exit = True
            engine.kill()
            server.drop_connections()
        server.should_exit = True

    async def _wait_for_requests(self, serving: Serving, engine: EngineProcess, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        was_dead = engine.dead.done()
        while serving.num_requests and not self._forced.is_set() and engine.dead.done() == was_dead:
            if deadline is not None and loop.time() > deadline:
                return
            await asyncio.sleep(0.02)

    def _on_signal(self) -> None:
        if self._asked.is_set():
            self._forced.set()
        self._asked.set()


def run(config: ServerConfig, engine_arguments: Mapping[str, Any]) -> int:
    """Serves until a signal ends it; the exit code.

    Raises:
        Error: what the engine's constructor raises, the address is taken, or EngineDeadError.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return_large_blocks()
    timer = StartTimer.of_process("imports")
    timer.enter("config")
    engine_config = EngineConfig.from_arguments(dict(engine_arguments))
    tokenizer = None if engine_config.skip_tokenizer_init else Tokenizer(engine_config.tokenizer_dir)
    with bind(config) as listener:
        return asyncio.run(_serve(config, engine_config, dict(engine_arguments), tokenizer, listener, timer))


def bind(config: ServerConfig) -> socket.socket:
    """A socket with the address, which does not listen yet: clients are refused until the engine is ready."""
    host = config.host.strip("[]")
    try:
        family = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0][0]
        # the protocol by name: without it asyncio leaves Nagle's algorithm on, and each small answer waits for an ACK
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, config.port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {config.port}: {error.strerror}", hint="--host, --port"
        ) from None
    return found


async def _serve(
    config: ServerConfig,
    engine_config: EngineConfig,
    arguments: dict[str, Any],
    tokenizer: Tokenizer | None,
    listener: socket.socket,
    timer: StartTimer,
) -> int:
    lifecycle = Lifecycle(config.drain_timeout)
    max_open = engine_config.max_num_seqs + config.max_queued_requests
    engine = EngineProcess({**arguments, "max_queued_requests": config.max_queued_requests}, max_open=max_open)
    try:
        timer.enter("engine")
        if not await lifecycle.start(engine):
            return 0
        timer.enter("listen")
        serving = Serving(engine, tokenizer, config, model_name(config, engine_config), timer)
        await _listen(config, engine_config, lifecycle, engine, serving, listener)
    finally:
        await engine.close()
        if tokenizer is not None:
            tokenizer.close()
    if engine.dead.done():
        raise engine.dead.result()
    return lifecycle.status


async def _listen(
    config: ServerConfig,
    engine_config: EngineConfig,
    lifecycle: Lifecycle,
    engine: EngineProcess,
    serving: Serving,
    listener: socket.socket,
) -> None:
    def announce() -> None:
        serving.started()
        leave_out_of_collections()
        if engine_config.is_builtin:
            print(BUILTIN_LINE, file=sys.stderr)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {serving.model} at http://{shown}:{port}", file=sys.stderr, flush=True)

    server = HttpServer(_uvicorn_config(config, serving), announce)
    tasks = [
        asyncio.create_task(serving.watch_engine(), name="watch engine"),
        asyncio.create_task(lifecycle.run(serving, engine, server), name="lifecycle"),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        await serving.close()


def _uvicorn_config(config: ServerConfig, serving: Serving) -> uvicorn.Config:
    protocol = with_limits(
        header_timeout_s=config.header_timeout,
        write_timeout_s=config.write_timeout,
        max_connections=config.max_connections,
    )
    return uvicorn.Config(
        make_app(serving),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=max(1, int(config.header_timeout)),
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        backlog=_BACKLOG,
    )


def model_name(config: ServerConfig, engine_config: EngineConfig) -> str:
    if config.served_model_name is not None:
        return config.served_model_name
    return _BUILTIN_NAME if engine_config.is_builtin else engine_config.model_dir.resolve().name
