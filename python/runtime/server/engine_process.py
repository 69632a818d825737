"""An engine in a child process, over a socketpair that it inherits."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from typing import Any, ClassVar

from runtime.errors import EngineDeadError, RequestAborted
from runtime.server import messages
from runtime.server.client import EngineClient
from runtime.server.messages import Drain, Failed, FromEngine, Info, Start, ToEngine, frame, from_wire

_EXIT_TIMEOUT_S = 10.0
_LAST_WORDS_S = 1.0  # between the end of the stream and the end of the process
_READ_AHEAD_BYTES = 8 << 20


class EngineProcess(EngineClient):
    """Starts `runtime.server.engine_child`, and notices when it ends.

    Args:
        arguments: of `EngineConfig`, plain values.
    """

    command: ClassVar[list[str]] = [sys.executable, "-m", "runtime.server.engine_child"]

    def __init__(self, arguments: dict[str, Any], *, max_open: int | None = None) -> None:
        super().__init__(max_open)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []
        self._receiving: asyncio.Task[None]

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*self.command, str(theirs.fileno())]
            # a session of its own: Ctrl-C in a terminal is for the server, which drains first
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_READ_AHEAD_BYTES)
        self._send(Start(self._arguments))
        first = await self._read(reader)
        if isinstance(first, Failed):
            await self._wait_for_exit(_EXIT_TIMEOUT_S)
            raise from_wire(first.error)
        if not isinstance(first, Info):
            raise EngineDeadError(f"{await self._last_words()} while it started")
        self.info = first
        self._receiving = asyncio.create_task(self._receive_all(reader), name="engine")

    async def close(self) -> None:
        if self._process is None or self._is_closing:
            return
        is_alive, self._is_closing = self.is_alive, True
        self.fail_all(RequestAborted("the engine is closed"))
        if is_alive:
            self._send(Drain())
            await self._wait_for_exit(_EXIT_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Ends the process at once."""
        self._is_closing = True
        self.fail_all(RequestAborted("the engine is closed"))
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._writer is not None:
            self._writer.close()

    def _send(self, message: ToEngine) -> None:
        """With all others of this turn of the loop: a burst of requests is one write, and wakes the engine once."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(frame(message))

    def _flush(self) -> None:
        assert self._writer is not None, "started"
        unsent, self._unsent = self._unsent, []
        if not self._writer.is_closing():
            self._writer.write(b"".join(unsent))

    async def _receive_all(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await self._read(reader)) is not None:
                self._receive(message)
        except Exception as error:  # nobody would be told otherwise
            self._die(EngineDeadError(error))
        if self.is_alive:
            self._die(EngineDeadError(await self._last_words()))

    async def _read(self, reader: asyncio.StreamReader) -> FromEngine | None:
        try:
            (size,) = messages.HEADER.unpack(await reader.readexactly(messages.HEADER.size))
            body = await reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return None
        found: FromEngine = messages.from_engine.decode(body)
        return found

    async def _last_words(self) -> str:
        if not await self._wait_for_exit(_LAST_WORDS_S):
            return "the engine's process closed its stream"
        assert self._process is not None
        status = self._process.returncode
        if status < 0:
            return f"the engine's process was killed by {signal.Signals(-status).name}"
        return f"the engine's process ended with status {status}"

    async def _wait_for_exit(self, timeout_s: float) -> bool:
        """Whether the process has ended."""
        process = self._process
        assert process is not None
        deadline = asyncio.get_running_loop().time() + timeout_s
        while process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True
