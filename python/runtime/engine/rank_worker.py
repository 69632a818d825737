"""One rank above 0: its part of the model, driven by the plans of rank 0. `runtime.worker.RankWorker` says how."""

from __future__ import annotations

import gc
from collections import deque

import numpy as np
import torch

from runtime.config import EngineConfig
from runtime.engine.device import making_context
from runtime.engine.loading import LoadedModel, load_model
from runtime.engine.model_runner import ModelRunner, Step
from runtime.engine.peers import Channel, Peers, RankChannel
from runtime.kernels import step_plan as sp
from runtime.parallel import TpGroup, init_tp_group, make_unique_id
from runtime.start_timer import StartTimer

_JOIN_TIMEOUT_S = 60.0


def join(config: EngineConfig, device: str, unique_id: bytes, rank: int, channel: Channel) -> TpGroup:
    """Joins the collectives, and returns when all ranks have. On CUDA the current device is this rank's."""
    channel.exchange(b"")  # all are there; until then the loss of one ends the wait at once
    return init_tp_group(
        unique_id,
        rank,
        config.tensor_parallel_size,
        device,
        max(
            _JOIN_TIMEOUT_S, 2 * config.resolve_step_timeout(device)
        ),  # a step that hangs is seen by the watchdog first
        deterministic=config.deterministic,
        overlap=config.overlap,
    )


class ModelRankWorker:
    """Runs every plan on this rank's part of the model; samples nothing, decides nothing.

    Args:
        config: rank 0's.
        device: "cpu" or "cuda"; each rank has the CUDA device of its number.
        channel: to the other ranks; shows how many collectives this one has called.
        timer: of this rank's start.
    """

    def __init__(self, config: EngineConfig, device: str, channel: RankChannel, timer: StartTimer) -> None:
        self._timer = timer
        self._config, self._device, self._channel = config, device, channel
        self._timeout_s = config.resolve_step_timeout(device)
        self._peers = Peers()
        self._runner: ModelRunner
        self._in_flight: deque[Step] = deque()
        self._turn = 0
        self._done = -1

    @staticmethod
    def unique_id(device: str) -> bytes:
        return make_unique_id(device)

    def init(self, unique_id: bytes, rank: int) -> None:
        self._timer.enter("device")
        if self._device == "cuda":
            with making_context():
                torch.cuda.set_device(rank)
                torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        self._timer.enter("ranks")
        self._peers = Peers(join(self._config, self._device, unique_id, rank, self._channel), self._channel)

    def load(self) -> int:
        loaded = load_model(self._config, self._device, self._peers, self._timer)
        if self._device == "cpu":
            torch.set_num_threads(loaded.num_threads)
        sizes = self._peers.told()
        with loaded.meter.guard(loaded.plan):
            self._make_runner(loaded, sizes["num_plan_buffers"], sizes["plan_capacity"])
        return sizes["plan_capacity"]

    def _make_runner(self, loaded: LoadedModel, num_plan_buffers: int, plan_capacity: int) -> None:
        self._runner = loaded.make_runner(ModelRunner, num_plan_buffers=num_plan_buffers, plan_capacity=plan_capacity)
        loaded.make_ready(self._runner)

    @torch.inference_mode()
    def run_step(self, plan: memoryview) -> None:
        if len(self._in_flight) == len(self._runner.plans):
            self._retire()  # of all buffers the next one is its
        words = np.frombuffer(plan, np.int32)
        num_words = int(words[sp.NUM_WORDS])
        self._runner.plans[self._turn][:num_words] = words[:num_words]
        self._in_flight.append(self._runner.launch(self._turn))
        self._channel.show_calls(self._peers.tp_group.num_calls & 0xFFFFFFFF)
        self._turn = (self._turn + 1) % len(self._runner.plans)

    def heartbeat(self) -> int:
        while self._in_flight and self._in_flight[0].is_done:
            self._retire()
        return self._done

    def shutdown(self) -> None:
        while self._in_flight:
            self._retire()
        del self._runner
        gc.collect()  # NCCL does not end before the last graph with a kernel of its
        self._peers.tp_group.close()

    def _retire(self) -> None:
        step = self._in_flight.popleft()
        step.wait(self._timeout_s, self._peers.tp_group)
        self._done = step.number
