"""How long a start takes, from the process's first moment to ready, and where that time goes.

Each start is a process of its own. `cold` finds no compiled kernel, `warm` those that a start before has left; both in
a folder of their own, so that neither depends on what this machine has run. `keep` finds what is there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from runtime import errors
from runtime.bench.load.spawn import SpawnedServer
from runtime.bench.progress import announce
from runtime.errors import EngineDeadError, Error

Row = dict[str, Any]
CACHES = ("warm", "cold", "both", "keep")
_CACHE_VARIABLE = "TRITON_CACHE_DIR"
_ANSWER_TIMEOUT_S = 60.0


def measure(arguments: Mapping[str, Any], *, cache: str = "warm", serves: bool = False) -> Iterator[Row]:
    """One row a start, for "both" two.

    Args:
        arguments: of `EngineConfig`.
        cache: one of CACHES.
        serves: `runtime serve`, up to its first answer, instead of an engine alone.

    Raises:
        Error: what the engine's constructor raises.
        EngineDeadError: the process ended without a word; there may be one on standard error.
    """
    start = _start_server if serves else _start_engine
    if cache == "keep":
        yield {"kernel_cache": cache, **start(arguments)}
        return
    with tempfile.TemporaryDirectory(prefix="runtime-startup-") as folder, _environment(_CACHE_VARIABLE, folder):
        announce("a start with an empty kernel cache")
        cold = start(arguments)
        if cache in ("cold", "both"):
            yield {"kernel_cache": "cold", **cold}
        if cache in ("warm", "both"):
            announce("a start with the kernels of the one before")
            yield {"kernel_cache": "warm", **start(arguments)}


def _start_engine(arguments: Mapping[str, Any]) -> Row:
    command = [sys.executable, "-m", "runtime.bench.startup_probe", json.dumps(dict(arguments))]
    since = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout is not None
        line = probe.stdout.readline()
        seconds = time.monotonic() - since
    if not line:
        raise EngineDeadError(f"the start ended with status {probe.returncode}")
    found = json.loads(line)
    if "error" in found:
        raise _as_error(**found["error"])
    return {"dtype": found["dtype"], **_row(seconds, found["startup"])}


def _as_error(kind: str, message: str, hint: str) -> Error:
    made: Error = getattr(errors, kind)(message.removeprefix("the engine has stopped: "), hint=hint)
    return made


def _start_server(arguments: Mapping[str, Any]) -> Row:
    since = time.monotonic()
    with SpawnedServer(arguments) as server:
        _get(server.url, "/ready")
        seconds = time.monotonic() - since
        return _row(seconds, _get(server.url, "/stats")["startup"])


def _get(url: str, path: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise EngineDeadError(f"{path} of the server that was started has status {answer.status}")
    return json.loads(body)


def _row(seconds: float, startup: Sequence[Mapping[str, float]]) -> Row:
    """
    Args:
        startup: seconds of each phase, a dict a rank.
    """
    row: Row = {"s": round(seconds, 3), "phases_s": _rounded(startup[0])}
    row["covered_pct"] = round(100 * sum(startup[0].values()) / seconds, 1)
    if len(startup) > 1:
        row["rank_phases_s"] = [_rounded(phases) for phases in startup[1:]]
    return row


def _rounded(phases: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in phases.items()}


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
