"""How the server listens and what it lets through; the engine's own arguments are `EngineConfig`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import ConfigError, shorten

_LOG_FORMATS = ("text", "json")
TOOL_CALL_PARSERS = ("auto", "hermes", "llama3_json")
_MIN_KEY_LEN = 8
# inclusive bounds
_INTEGERS = {
    "port": (0, 65535),
    "max_queued_requests": (0, (1 << 31) - 1),
    "max_body_bytes": (1 << 10, 1 << 30),
    "max_pending_body_bytes": (1 << 10, 1 << 40),
    "max_connections": (1, 1 << 20),
}
_SECONDS = ("header_timeout", "body_timeout", "write_timeout", "request_timeout", "max_queue_time")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Validated arguments of one server.

    Args:
        host: address to listen on; one that others can reach needs an API key.
        port: 0: any free one, which the first line of output names.
        served_model_name: the model's name in requests and answers; None: the name of its folder.
        api_key: clients must send one of these as a bearer token, or as the password of HTTP Basic.
        insecure_no_auth: listen where others can reach it without an API key.
        allowed_host: names that the Host header may have; None: those of this machine when it listens on loopback,
            any otherwise.
        allowed_origin: pages of other origins that may send requests, such as https://chat.example.
        max_queued_requests: completions that may wait beside the max_num_seqs that run; more get 429.
        max_queue_time: seconds that a request may be expected to wait for its first token; one that would wait for
            longer, or past its deadline, gets 429. None: 1 s while more requests come than are served, but for those
            that state a deadline.
        request_timeout: most seconds for a request that says no deadline_s of its own; None: no limit.
        header_timeout: seconds for a request's headers, and for a connection without one.
        body_timeout: seconds for a request's body.
        write_timeout: seconds without progress after which a client that does not read is dropped.
        drain_timeout: seconds for running requests after SIGTERM; None: as long as they take.
        max_body_bytes: largest body of a request.
        max_pending_body_bytes: all bodies that have arrived and are not with the engine yet; more get 429.
        max_connections: connections open at once; further ones are closed.
        tool_call_parser: how the model writes tool calls: "hermes" (Qwen 2.5 and 3, too) or "llama3_json"; "auto": as
            its chat template shows, else the tokens that it knows.
        log_format: "text", or "json" with one object a line.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_key: Sequence[str] = ()
    insecure_no_auth: bool = False
    allowed_host: Sequence[str] | None = None
    allowed_origin: Sequence[str] = ()
    max_queued_requests: int = 1024
    max_queue_time: float | None = None
    request_timeout: float | None = None
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    drain_timeout: float | None = None
    max_body_bytes: int = 8 << 20
    max_pending_body_bytes: int = 256 << 20
    max_connections: int = 4096
    tool_call_parser: str = "auto"
    log_format: str = "text"

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"{name}={shorten(value)}: must be an integer between {low} and {high}{_nearest(value, low, high)}"
                )
        for name in (*_SECONDS, "drain_timeout"):
            self._check_seconds(name)
        for name, allowed in (("log_format", _LOG_FORMATS), ("tool_call_parser", TOOL_CALL_PARSERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={shorten(getattr(self, name))}: must be one of {', '.join(allowed)}")
        for key in self.api_key:
            if not re.fullmatch(rf"[\x21-\x7e]{{{_MIN_KEY_LEN},}}", key):
                raise ConfigError(f"an api_key must have at least {_MIN_KEY_LEN} printable ASCII characters, no spaces")
        if not (self.is_loopback or self.api_key or self.insecure_no_auth):
            raise ConfigError(
                f"host={self.host}: others can reach this address, so an API key is needed",
                hint="--api-key or RUNTIME_API_KEY; --host 127.0.0.1 for this machine alone; or --insecure-no-auth",
            )

    def _check_seconds(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dict__.get(name) is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 86400:
            nearest = _nearest(value, 0 if name == "drain_timeout" else 1, 86400)
            raise ConfigError(f"{name}={shorten(value)}: must be a number of seconds between 0 and 86400{nearest}")
        if value == 0 and name != "drain_timeout":
            raise ConfigError(f"{name}=0: must be above 0 seconds")

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> tuple[str, ...] | None:
        """What the Host header may be, without a port; None: anything."""
        if self.allowed_host is not None:
            return tuple(name.lower() for name in self.allowed_host)
        return (*_LOOPBACK_NAMES, self.host) if self.is_loopback else None


def _nearest(value: object, low: int, high: int) -> str:
    """The nearest value that works, for the end of a message; "" for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return ""
    return f"; nearest: {int(min(max(value, low), high))}"


def with_masked_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """For printing."""
    return {name: ["***"] * len(value) if name == "api_key" and value else value for name, value in values.items()}  # type: ignore[arg-type]
