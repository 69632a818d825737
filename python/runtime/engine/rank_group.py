"""Rank 0's hold on the processes of the other ranks: how they start, what they are told, how a loss is named."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from runtime import _core
from runtime.basemodel import model_class_of
from runtime.config import EngineConfig
from runtime.engine.device import Device
from runtime.engine.memory_needs import meta_model
from runtime.engine.peers import Peers
from runtime.engine.rank_worker import ModelRankWorker, join
from runtime.errors import (
    CapacityError,
    CommunicatorError,
    ConfigError,
    DeviceNotFoundError,
    EngineDeadError,
    Error,
    ModelFormatError,
    ModelNotFoundError,
)
from runtime.kernels import step_plan as sp
from runtime.parallel import TpGroup

if TYPE_CHECKING:
    from runtime.engine.model_runner import ModelRunner

_END_GRACE_S = 3.0
_LAST_WORDS_S = 1.0  # after a collective failed, until the rank that is why has been found
_SILENT_S = 1.0  # a process that runs is heard ten times a second

# The network that NCCL looks for is this host; NVLink SHARP and multicast are for those who ask for them.
_NCCL_ENVIRONMENT = {
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}


class SingleRank:
    """The engine's other processes where there are none. Methods may be called from any thread, `publish` from one."""

    def __init__(self, config: EngineConfig, device: str) -> None:
        self._config, self._device = config, device
        self._timeout_s = config.resolve_step_timeout(device)
        self._stopped = threading.Event()

    def join(self) -> Peers:
        """Joins the collectives, and returns when all ranks have."""
        return Peers()

    def serve(self, runner: ModelRunner) -> None:
        """From now on plans are published from the buffers of this runner."""

    def publish(self, buffer: int) -> None:
        """Gives the plan in that buffer to every rank."""

    def wait_for_loss(self, timeout_s: float) -> BaseException | None:
        """The error to raise once a rank is lost; None after `timeout_s` or when the group has been stopped."""
        self._stopped.wait(timeout_s)
        return None

    def cause_of(self, error: BaseException) -> BaseException:
        """The loss that is behind an error on rank 0, or the error itself."""
        return error

    def blame_hung_step(self) -> BaseException:
        """A step has run longer than step_timeout: names the rank that is why, as far as that can be seen."""
        return EngineDeadError(f"a step ran longer than step_timeout={self._timeout_s} s")

    def abort(self, cause: str) -> None:
        """Releases rank 0 from a collective that never ends, and kills the others."""
        self._stopped.set()

    def stop(self) -> None:
        """Lets the ranks finish their work and end; those that do not are killed. Idempotent."""
        self._stopped.set()


class RankGroup(SingleRank):
    """Starts ranks 1.. at once; they load while rank 0 does.

    Raises:
        ConfigError, DeviceNotFoundError, CapacityError: they cannot be started, or the model is not for so many.
    """

    def __init__(self, config: EngineConfig, device: str) -> None:
        super().__init__(config, device)
        self._tp_group = TpGroup()
        self._plans: list[Any] = []
        self._addresses: list[int] = []
        self._step = 0
        self._is_serving = False
        module, size = _check(config, device), config.tensor_parallel_size
        if device == "cuda":
            for name, value in _NCCL_ENVIRONMENT.items():  # this process is a rank too
                os.environ.setdefault(name, value)
        self._unique_id = ModelRankWorker.unique_id(device)
        self._launcher = _core.Launcher([sys.executable, "-m", "runtime.worker"], size, environment=_environment(size))
        settings = {
            "config": _as_json(config),
            "device": device,
            "unique_id": self._unique_id.hex(),
            "model_module": module,
        }
        for rank in range(1, size):
            self._launcher.send(rank, json.dumps(settings).encode())

    # ---- work -----------------------------------------------------------------------------

    def join(self) -> Peers:
        self._tp_group = join(self._config, self._device, self._unique_id, 0, self._launcher)
        return Peers(self._tp_group, self._launcher)

    def serve(self, runner: ModelRunner) -> None:
        self._addresses = [address for address, _ in runner.plan_buffers]
        self._plans = runner.plans
        self._is_serving = True

    def publish(self, buffer: int) -> None:
        self._step = int(self._plans[buffer][sp.STEP])
        self._launcher.publish(self._addresses[buffer], self._timeout_s)

    # ---- failures -------------------------------------------------------------------------

    def wait_for_loss(self, timeout_s: float) -> BaseException | None:
        failure = self._launcher.wait_for_failure(timeout_s)
        return None if failure is None else self._as_error(failure)

    def cause_of(self, error: BaseException) -> BaseException:
        is_echo = isinstance(error, (CommunicatorError, EngineDeadError))
        loss = self.wait_for_loss(_LAST_WORDS_S if is_echo else 0.0)
        return error if loss is None else loss

    def blame_hung_step(self) -> BaseException:
        rank, what = self._find_culprit()
        self._launcher.fail(_core.RankFailure(rank, f"{what} (step_timeout={self._timeout_s:g} s)"))
        failure = self._launcher.failure
        assert failure is not None, "one was just set"
        return self._as_error(failure)

    def _find_culprit(self) -> tuple[int, str]:
        states = self._launcher.ranks
        silent = max(states, key=lambda state: state.silent_s)
        if silent.silent_s > min(_SILENT_S, self._timeout_s / 2):
            return silent.rank, f"rank {silent.rank} (process {silent.pid}) does not respond {silent.phase}"
        for state in states:
            name = f"rank {state.rank} (process {state.pid})"
            if state.begun_step != self._step:
                return state.rank, f"{name} has not begun step {self._step}, which rank 0 waits for"
            if self._device == "cuda" and (missing := self._calls_missing_on(state)):
                first, other = (name, "rank 0") if missing > 0 else ("rank 0", name)
                what = f"{first} has called {abs(missing)} collectives fewer than {other} up to step {self._step}"
                return state.rank if missing > 0 else 0, what
            if state.done_step == self._step:
                return state.rank, f"{name} is done with step {self._step}, and rank 0 waits for it in a collective"
        return 0, f"step {self._step} hangs on all ranks"

    def _calls_missing_on(self, state: _core.RankState) -> int:
        """Collectives that rank 0 has called and this rank has not; where launches do not wait, all that ever come."""
        difference = (self._tp_group.num_calls - state.num_calls) % (1 << 32)
        return difference if difference < 1 << 31 else difference - (1 << 32)

    def _as_error(self, failure: _core.RankFailure) -> BaseException:
        refusal = _REFUSALS.get(failure.type)
        if refusal is not None and not self._is_serving:
            return refusal(f"rank {failure.rank}: {failure.cause}", hint=failure.hint)
        return EngineDeadError(failure.what, hint=failure.hint)

    # ---- the end --------------------------------------------------------------------------

    def abort(self, cause: str) -> None:
        self._tp_group.abort(cause)
        self._launcher.stop(0.0)

    def stop(self) -> None:
        self._launcher.stop(_END_GRACE_S if self._is_serving else 0.0)
        self._tp_group.close()


def start_ranks(config: EngineConfig, device: str) -> SingleRank:
    """The processes that `tensor_parallel_size` asks for besides this one."""
    return RankGroup(config, device) if config.tensor_parallel_size > 1 else SingleRank(config, device)


# what a start may end with on any rank, by the name that a rank reports
_REFUSALS: dict[str, Callable[..., Error]] = {
    kind.__name__: kind
    for kind in (CapacityError, ConfigError, DeviceNotFoundError, ModelFormatError, ModelNotFoundError)
}


def _check(config: EngineConfig, device: str) -> str:
    """Refuses what no start would change; the module that the ranks import to find the model's class."""
    if device == "cuda" and config.tensor_parallel_size > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceNotFoundError(
            f"tensor_parallel_size={config.tensor_parallel_size}: each rank needs a CUDA device, torch sees {found}",
            hint=f"nearest: {found}",
        )
    if not sys.executable:
        raise ConfigError("sys.executable names no Python interpreter to start the other ranks with")
    model_class = model_class_of(config.model_dir)
    if model_class.__module__ == "__main__":
        raise ConfigError(
            f"{model_class.__name__} is defined in the program itself, where the processes of other ranks do not look",
            hint="put it into a module that the program imports",
        )
    meta_model(config, Device(device, "", 0))
    return model_class.__module__


def _environment(size: int) -> dict[str, str]:
    """Of a rank's process: modules are found as in this one, and all ranks together have its threads."""
    nccl = {name: os.environ.get(name, value) for name, value in _NCCL_ENVIRONMENT.items()}
    return {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(max(torch.get_num_threads() // size, 1)),
        **nccl,
    }


def _as_json(config: EngineConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
