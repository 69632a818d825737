"""Log lines with fields: as text, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

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


def set_up_logging(level: str, *, as_json: bool) -> None:
    """The package's log, and warnings of the HTTP library, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter(as_json=as_json))
    for name, threshold in (("runtime", level.upper()), ("uvicorn", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False
