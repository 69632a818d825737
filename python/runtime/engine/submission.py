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


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Validated options of one request.

    Args:
        priority: higher ones go first under scheduling_policy="priority".
        tenant: whose share it counts against under scheduling_policy="fair", and whose outputs tell how long this one
            will be; "": one tenant of all who say nothing.
        deadline_s: seconds after which it ends with DeadlineExceeded; None: no limit.
        cache_salt: requests share cached prefixes only under equal salts.
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
        priority, tenant, deadline = self.priority, self.tenant, self.deadline_s
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _MAX_PRIORITY:
            raise InvalidRequestError(
                "priority", priority, f"an integer between {-_MAX_PRIORITY} and {_MAX_PRIORITY}", _nearest(priority)
            )
        if not isinstance(tenant, str) or len(tenant) > _MAX_NAME_LEN:
            raise InvalidRequestError("tenant", tenant, f"a name of at most {_MAX_NAME_LEN} characters")
        if deadline is None:
            return
        is_number = isinstance(deadline, (int, float)) and not isinstance(deadline, bool)
        if not is_number or not 0.0 < deadline < math.inf:
            raise InvalidRequestError("deadline_s", deadline, "a number of seconds above 0, or None")


def _nearest(priority: object) -> int | None:
    if isinstance(priority, bool) or not isinstance(priority, int):
        return None
    return max(-_MAX_PRIORITY, min(priority, _MAX_PRIORITY))
