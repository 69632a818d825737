"""The outermost layer: request ids, who may ask, errors as answers, and a line of log for each request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.log import get_logger
from runtime.server.http_errors import HttpError, error_response
from runtime.server.serving import Serving

access_log = get_logger("runtime.server.access")
logger = get_logger(__name__)

# what a supervisor asks for without a key; compared with the path as it was sent
OPEN_PATHS = frozenset({b"/health", b"/health/live", b"/ready", b"/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store", "referrer-policy": "no-referrer"}


class Guard:
    """Wraps the routes; endpoints find `serving` as `request.app`."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving
        self._config = serving.config
        self._keys = [_digest(key.encode()) for key in self._config.api_key]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self._serving
        exchange = _Exchange(scope, send)
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(headers)
            self._check_key(scope, headers)
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            if exchange.status:  # too late for an answer: the connection ends without its end
                raise
            response = error_response(_from_router(scope, error), retry_after_s=self._serving.retry_after_s())
            await response(scope, receive, exchange.send)
        finally:
            self._serving.release(scope)
            exchange.log()

    def _check_host(self, headers: Headers) -> None:
        """Against a page whose name was made to point to this machine."""
        names = self._config.host_names
        if names is not None and _without_port(headers.get("host", "")) not in names:
            raise HttpError(
                403, "this Host header is not served here (--allowed-host)", "host_not_allowed", param="Host"
            )

    def _check_origin(self, headers: Headers) -> None:
        """A page of another origin may not send requests, whether or not it can read the answers."""
        origin = headers.get("origin")
        if origin is None or origin in self._config.allowed_origin:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise HttpError(
                403, "requests from pages of other origins are refused (--allowed-origin)", "origin_not_allowed"
            )

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or scope.get("raw_path") in OPEN_PATHS:
            return
        given = _digest(_credential(headers.get("authorization", "")))
        # all of them, so that the time does not tell which one fits
        if not any([hmac.compare_digest(given, key) for key in self._keys]):
            wants_page = "text/html" in headers.get("accept", "")
            challenge = 'Basic realm="runtime: the API key is the password"' if wants_page else "Bearer"
            raise HttpError(401, "no valid API key", "invalid_api_key", headers={"www-authenticate": challenge})


class _Exchange:
    """One request and its answer, as far as headers and log are concerned."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.status = 0
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        # endpoints add what they know
        self.fields: dict[str, Any] = {"request_id": self.id}
        scope.setdefault("state", {})["log"] = self.fields
        # by time.monotonic(), of the first bytes; those of a request behind another one came with that
        scope["state"].setdefault("arrived_at", time.monotonic())

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    def log(self) -> None:
        took_ms = (time.monotonic() - self._scope["state"]["arrived_at"]) * 1e3
        known = {"method": self._scope["method"], "path": self._path(), "status": self.status}
        access_log.info("request", extra={"fields": {**self.fields, **known, "ms": round(took_ms, 1)}})

    def _path(self) -> str:
        path = self._scope.get("raw_path") or b""
        return str(path[:200].decode("ascii", "replace"))


def _from_router(scope: Scope, error: Exception) -> Exception:
    """A path or a method that is not served."""
    if not isinstance(error, HTTPException):
        return error
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{scope['method']} {ascii(scope['path'][:200])[1:-1]}: {error.detail}"
    return HttpError(error.status_code, message, code, headers=error.headers)


def _credential(authorization: str) -> bytes:
    """The token of `Bearer`, or the password of `Basic`."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _digest(key: bytes) -> bytes:
    """Of one length, so that a comparison does not tell the key's."""
    return hashlib.sha256(key).digest()


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host).lower()
