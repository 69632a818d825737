"""Log lines with fields: as text, or one JSON object a line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any, TextIO

import msgspec


class FieldFormatter(logging.Formatter):
    """Shows the `fields` of a record, such as a request's id, behind or beside its message."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__("%(levelname)s %(asctime)s %(name)s: %(message)s", "%H:%M:%S")
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if not self._as_json:
            return " ".join([super().format(record), *(f"{name}={value}" for name, value in fields.items())])
        found = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(found).decode()


class TurnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes what one turn of the event loop logs at once: requests end in bursts, and each write wakes a reader.

    Warnings, and what is logged without a loop, are written immediately.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = _running_loop()
            if loop is None or record.levelno >= logging.WARNING:
                self.flush()
            elif len(self._lines) == 1:
                loop.call_soon(self.flush)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            self.stream.write("".join(lines))
            super().flush()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def set_up_logging(level: str, *, as_json: bool) -> None:
    """The package's log, and warnings of the HTTP library, on stderr."""
    handler = TurnHandler(sys.stderr)
    handler.setFormatter(FieldFormatter(as_json=as_json))
    for name, threshold in (("runtime", level.upper()), ("uvicorn", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False
