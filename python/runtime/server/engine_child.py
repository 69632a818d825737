"""The engine's process: `python -m runtime.server.engine_child FD`, started by `client.EngineProcess`.

FD is its end of a socketpair. It ends when the server does, which it sees as the end of that stream.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator

from runtime.config import EngineConfig
from runtime.errors import Error
from runtime.log import get_logger, set_level
from runtime.server import messages
from runtime.server.heap import leave_out_of_collections
from runtime.server.messages import Drain, Failed, FromEngine, Start, ToEngine, frame, to_wire
from runtime.start_timer import StartTimer

logger = get_logger(__name__)

EXIT_ENGINE_DIED = 70
_SWITCH_INTERVAL_S = 5e-4  # what the engine thread may wait for the thread that makes text


class Channel:
    """Messages over a blocking stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def send(self, message: FromEngine) -> None:
        """A server that has gone away is seen by whoever receives."""
        try:
            self._stream.sendall(frame(message))
        except OSError:
            logger.debug("the server is gone")

    def __iter__(self) -> Iterator[ToEngine]:
        """Messages until the server ends."""
        with self._stream.makefile("rb", buffering=1 << 16) as stream:
            while len(header := stream.read(messages.HEADER.size)) == messages.HEADER.size:
                (size,) = messages.HEADER.unpack(header)
                body = stream.read(size)
                if len(body) < size:
                    return
                yield messages.to_engine.decode(body)


def serve(channel: Channel) -> int:
    """Builds the engine as the first message says, and runs it until the server ends or drains it; an exit code."""
    received = iter(channel)
    first = next(received, None)
    if not isinstance(first, Start):
        return EXIT_ENGINE_DIED
    timer = StartTimer.of_process("interpreter")
    timer.enter("imports")
    from runtime.engine import Engine
    from runtime.server.host import EngineHost

    timer.enter("config")
    try:
        config = EngineConfig.from_arguments(first.arguments)
        if config.log_level is not None:
            set_level(config.log_level)
        engine = Engine(config, timer=timer)
    except Exception as error:
        if not isinstance(error, Error):
            logger.exception("the engine did not start")
        channel.send(Failed(to_wire(error)))
        return EXIT_ENGINE_DIED
    host = EngineHost(engine, channel.send)
    leave_out_of_collections()
    channel.send(host.info())
    engine.prepare_grammars()  # now, when there is nobody yet who would wait for it
    for message in received:
        if isinstance(message, Drain):
            break
        host.handle(message)
    host.close()
    if not host.failed.is_set():  # a hung step never ends
        engine.close()
    return EXIT_ENGINE_DIED if host.failed.is_set() else 0


def main() -> None:
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # the server decides
        signal.signal(signal_number, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with socket.socket(fileno=int(sys.argv[1])) as stream:
        status = serve(Channel(stream))
    sys.stderr.flush()
    os._exit(status)  # whatever a thread still waits for


if __name__ == "__main__":
    main()
