"""Errors as clients see them: OpenAI's shape, with a string code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from runtime.errors import (
    CapacityError,
    ConfigError,
    DeadlineExceeded,
    EngineDeadError,
    Error,
    InvalidRequestError,
    ModelFormatError,
    RequestAborted,
)
from runtime.log import get_logger

logger = get_logger(__name__)

_MAX_MESSAGE_CHARS = 2000
_MAX_CAUSE_CHARS = 300


class HttpError(Error):
    """An answer that only HTTP knows."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = code
        self.param = param
        self.headers = dict(headers or {})


# class: (status, type); the first that fits counts
_STATUS: tuple[tuple[type[Error], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error"),
    (ConfigError, 400, "invalid_request_error"),
    (ModelFormatError, 400, "invalid_request_error"),  # a chat template that failed on these messages
    (CapacityError, 429, "rate_limit_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (EngineDeadError, 503, "server_error"),
    (RequestAborted, 503, "server_error"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(error: BaseException) -> int:
    if isinstance(error, HttpError):
        return error.status
    return next((status for kind, status, _ in _STATUS if isinstance(error, kind)), 500)


def error_object(error: BaseException) -> dict[str, Any]:
    """`{"error": {...}}`; an error that is not ours shows its class alone."""
    if isinstance(error, HttpError):
        default = "invalid_request_error" if error.status < 500 else "server_error"
        kind, code, param = _TYPES.get(error.status, default), error.error_code, error.param
    elif isinstance(error, Error):
        kind = next((kind for cls, _, kind in _STATUS if isinstance(error, cls)), "server_error")
        code, param = error.code, getattr(error, "param", None) or None
    else:
        kind, code, param = "server_error", "internal_error", None
    message = str(error) if isinstance(error, Error) else f"an internal error ended the request: {type(error).__name__}"
    if isinstance(error, EngineDeadError):  # the cause may be anything
        message = message.split("\n")[0][:_MAX_CAUSE_CHARS]
    return {"error": {"message": message[:_MAX_MESSAGE_CHARS], "type": kind, "param": param, "code": code}}


def error_response(error: BaseException, *, retry_after_s: int = 1) -> Response:
    status = status_of(error)
    if status == 500:
        logger.error("an endpoint failed", exc_info=error)
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if status in (429, 503):
        headers.setdefault("retry-after", str(retry_after_s))
    return Response(msgspec.json.encode(error_object(error)), status, headers, media_type="application/json")
