"""Checks of one client: functions that get the server's address, each reported as one line of JSON on stdout.

Standard library only: it runs in the environment of each client.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

MODEL = "builtin"
QUESTION, ANSWER = "12+35=", "47"
MESSAGES = [{"role": "user", "content": QUESTION}]
# what the built-in model, which says nothing of use, can be made to call: it ends, as further keys are not allowed
TOOL = {
    "type": "function",
    "function": {
        "name": "carry",
        "description": "Whether one is carried.",
        "parameters": {
            "type": "object",
            "properties": {"carries": {"type": "boolean"}},
            "required": ["carries"],
            "additionalProperties": False,
        },
    },
}
FORCED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "carry"}}}
ARGUMENTS = ({"carries": True}, {"carries": False})
API_KEY = os.environ.get("CHECK_API_KEY", "any")

_checks: list[tuple[Callable[[str], object], str | None]] = []


def check(function: Callable[[str], object]) -> Callable[[str], object]:
    """Registers a function of the address, such as http://127.0.0.1:8000/v1, that raises when something is wrong."""
    _checks.append((function, None))
    return function


def needs(field: str) -> Callable[[Callable[[str], object]], Callable[[str], object]]:
    """Registers a check that is skipped where the server refuses this field of a chat."""

    def register(function: Callable[[str], object]) -> Callable[[str], object]:
        _checks.append((function, field))
        return function

    return register


class raises:
    """As pytest's: the block must raise this class, with this in its text; `value` is the exception."""

    def __init__(self, kind: type[BaseException], pattern: str = "") -> None:
        self._kind, self._pattern = kind, pattern
        self.value: Any = None

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"{self._kind.__name__} was not raised"
        self.value = error
        if not isinstance(error, self._kind):
            return False
        assert re.search(self._pattern, str(error)), f"{self._pattern!r} is not in {str(error)!r}"
        return True


def main() -> None:
    """Runs all checks against the address in the first argument."""
    url = sys.argv[1]
    outcomes = [_run(function, field, url) for function, field in _checks]
    sys.exit("failed" in outcomes)


def _run(function: Callable[[str], object], field: str | None, url: str) -> str:
    started, reason = time.monotonic(), ""
    if field is not None and (refusal := _refusal(url, field)):
        outcome, reason = "skipped", refusal
    else:
        try:
            function(url)
            outcome = "passed"
        except Exception as error:
            outcome, reason = "failed", f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
    row = {"check": function.__name__, "outcome": outcome, "seconds": round(time.monotonic() - started, 2)}
    print(json.dumps({**row, "reason": reason}), flush=True)
    return outcome


_SAMPLES: dict[str, Any] = {"response_format": {"type": "json_object"}, "tools": [TOOL]}


def _refusal(url: str, field: str) -> str:
    """What the server says when it refuses this field of a chat; "" when it does not."""
    body = {"messages": MESSAGES, "max_tokens": 1, field: _SAMPLES[field]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY}"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as refused:
        error = json.load(refused)["error"]
        if refused.code != 400 or error["param"] != field:
            raise
        return str(error["message"])
    return ""
