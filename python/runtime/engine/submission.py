"""What a request says beside its prompt and its sampling: whom it is for, how urgent it is, what it may share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from runtime.engine.request import RequestHandle

_MAX_PRIORITY = (1 << 31) - 1
_MAX_NAME_LEN = 256
_MAX_SALT_LEN = 1024


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Validated options of one request.

    Args:
        priority: higher ones go first under scheduling_policy="priority".
        tenant: whose share it counts against under scheduling_policy="fair", and whose outputs tell how long this one
            will be; "": one tenant of all who say nothing.
        deadline_s: seconds after which it ends with DeadlineExceeded; None: no limit.
        cache_salt: requests share cached prefixes only under equal salts; at most 1024 characters.
        score_start: the prompt's tokens from here on get logprobs, and nothing is sampled; -1: off.
        listener: called with the request after each of its tokens and at its end, mostly in the engine thread. It must
            be quick, and not raise.

    Raises:
        InvalidRequestError
    """

    priority: int = 0
    tenant: str = ""
    deadline_s: float | None = None
    cache_salt: str = ""
    score_start: int = -1
    listener: Callable[[RequestHandle], None] | None = None

    def __post_init__(self) -> None:
        self._check_priority()
        _require_text("tenant", self.tenant, f"a name of at most {_MAX_NAME_LEN} characters", _MAX_NAME_LEN)
        _require_text("cache_salt", self.cache_salt, f"a text of at most {_MAX_SALT_LEN} characters", _MAX_SALT_LEN)
        self._check_deadline()

    def _check_priority(self) -> None:
        given = self.priority
        if isinstance(given, bool) or not isinstance(given, int):
            raise InvalidRequestError("priority", given, f"an integer between {-_MAX_PRIORITY} and {_MAX_PRIORITY}")
        nearest = max(-_MAX_PRIORITY, min(given, _MAX_PRIORITY))
        if nearest != given:
            raise InvalidRequestError("priority", given, f"between {-_MAX_PRIORITY} and {_MAX_PRIORITY}", nearest)

    def _check_deadline(self) -> None:
        given = self.deadline_s
        is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if given is not None and not (is_number and 0.0 < given < math.inf):
            raise InvalidRequestError("deadline_s", given, "a number of seconds above 0, or None")


def _require_text(name: str, value: object, limit: str, max_len: int) -> None:
    if not isinstance(value, str) or len(value) > max_len:
        raise InvalidRequestError(name, value, limit)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(name, value, "text without half a surrogate pair") from None
