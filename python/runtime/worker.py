"""`python -m runtime.worker`: the process of one rank above 0, started by `_core.Launcher` and of no use without it.

What a rank does is a `RankWorker`; how its process is started, told and watched is the launcher's. A launcher for
other machines drives the same six methods.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, Protocol

from runtime._core import RankLink
from runtime.errors import CommunicatorError, EngineDeadError, Error
from runtime.log import set_level
from runtime.start_timer import StartTimer


class RankWorker(Protocol):
    """One rank, in terms that belong to no framework: bytes and numbers. Methods are called in this order."""

    @staticmethod
    def unique_id(device: str) -> bytes:
        """Names a group to be. Called once, on rank 0; at most 256 bytes."""

    def init(self, unique_id: bytes, rank: int) -> None:
        """Joins the group; returns when all ranks have."""

    def load(self) -> int:
        """Makes ready for steps, weights loaded; returns the words of the largest StepPlan."""

    def run_step(self, plan: memoryview) -> None:
        """Runs a StepPlan, or queues it; `plan` may be longer and is free afterwards."""

    def heartbeat(self) -> int:
        """The last step that has finished, -1: none. Never waits."""

    def shutdown(self) -> None:
        """Finishes the steps that are queued and leaves the group."""


def serve(link: RankLink, worker: RankWorker, unique_id: bytes) -> None:
    """Runs one rank from its start to the end of the group."""
    link.set_phase("while joining the other ranks")
    worker.init(unique_id, link.rank)
    link.set_phase("while loading the model")
    plan = bytearray(4 * worker.load())
    link.set_phase("")
    while link.read_plan(plan) is not None:
        worker.run_step(memoryview(plan))
        link.finish_step(worker.heartbeat())
    worker.shutdown()


def report(link: RankLink, error: BaseException) -> None:
    """Tells rank 0 why this rank ends; a traceback goes to standard error."""
    is_echo = isinstance(error, CommunicatorError)  # another rank knows more
    name, cause, hint = type(error).__name__, str(error), ""
    if isinstance(error, EngineDeadError):
        name, cause = "", str(error.cause)
    elif isinstance(error, Error):
        cause, hint = error.message, error.hint
    else:
        traceback.print_exception(error)
    link.fail(name, cause, hint, is_echo)


def run(link: RankLink, settings: dict[str, Any]) -> None:
    """Serves the model that rank 0's settings describe."""
    timer = StartTimer.of_process("interpreter")
    timer.enter("imports")
    from runtime.config import EngineConfig  # torch: only once rank 0 can see that this process runs
    from runtime.engine.rank_worker import ModelRankWorker

    config = EngineConfig.from_arguments(settings["config"])
    if config.log_level is not None:
        set_level(config.log_level)
    importlib.import_module(settings["model_module"])  # registers families from outside the package
    serve(link, ModelRankWorker(config, settings["device"], link, timer), bytes.fromhex(settings["unique_id"]))


def main() -> int:
    """Serves until the group ends, then ends the process; what goes wrong is told to rank 0."""
    link = RankLink()
    code = 0
    try:
        run(link, json.loads(link.receive()))
    except BaseException as error:
        report(link, error)
        code = 1
    sys.stderr.flush()
    os._exit(code)  # at once: no thread of a library, nor a device that hangs, keeps a lost rank


if __name__ == "__main__":
    main()
