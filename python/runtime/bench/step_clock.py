"""When the runtime's own steps began, how long their phases took and what lay between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from runtime import _core
from runtime.engine.model_runner import ModelRunner, Step
from runtime.simulation import StepLog

if TYPE_CHECKING:
    from runtime.basemodel import InferStateInfo
    from runtime.kernels.step_state import StepOutputs

PHASES = ("prepare_step", "model", "sample")


class StepClock:
    """When each step was launched, how many rows it decoded (-1: it also had a prompt), and its phases, in seconds.

    On CUDA a step is launched when the one two before it has ended, so that launches follow each other as steps do.

    Args:
        log: takes the steps of the runs that are kept.
    """

    def __init__(self, log: StepLog | None = None) -> None:
        self.log = log
        self.clear()

    def clear(self) -> None:
        """Forgets what was written down, such as of a warm-up."""
        self.starts: list[float] = []
        self.steps: list[Step] = []
        self.features: list[_core.StepFeatures] = []  # with a log only
        self.batches: list[int] = []
        self.phases: dict[str, list[float]] = {name: [] for name in PHASES}
        self.gaps = GapLog()

    def add(self, phase: str, since: float) -> None:
        """A phase that began at `since`, in seconds of time.perf_counter(), ends now."""
        self.phases[phase].append(time.perf_counter() - since)

    def decode_steps(self, batch: int) -> list[tuple[float, dict[str, float]]]:
        """(wall, phases) of the steps in which `batch` rows decoded, each up to the start of the next step."""
        found = []
        for i, (start, following) in enumerate(zip(self.starts, self.starts[1:])):
            if self.batches[i] == self.batches[i + 1] == batch:
                phases = {name: times[i] for name, times in self.phases.items() if i < len(times)}
                found.append((following - start, phases))
        return found

    def timed_steps(self) -> Iterator[tuple[_core.StepFeatures, float]]:
        """Each step but the last with its seconds: from when the device could begin it to when it could begin the next.

        It can once a step has been launched and the one before has ended. With one step in flight that is the launch,
        and the host's work between two steps counts; with two it is the end of the step before, unless that came first.
        """
        ends = [0.0, *(step.done_at or 0.0 for step in self.steps)]
        begins = [max(start, end) for start, end in zip(self.starts, ends)]
        for features, begin, following in zip(self.features, begins, begins[1:]):
            if features.num_rows > 0:  # otherwise it carried copies alone
                yield features, following - begin

    def keep(self, scenario: str) -> None:
        """Adds the steps since the last `clear` to the log, if there is one."""
        if self.log is not None:
            for features, seconds in self.timed_steps():
                self.log.add_features(features, seconds, scenario=scenario)


class GapLog:
    """CUDA events at the borders of steps."""

    def __init__(self) -> None:
        self._prepared: list[torch.cuda.Event] = []
        self._ended: list[torch.cuda.Event] = []
        self._was_late: list[bool] = []

    def prepared(self) -> None:
        """A step's first op, `prepare_step`, has been queued."""
        self._prepared.append(_recorded_event())

    def queued(self) -> None:
        """A step has been queued as a whole."""
        # the device ran dry if the step before had ended by now
        self._was_late.append(bool(self._ended) and self._ended[-1].query())  # type: ignore[no-untyped-call]
        self._ended.append(_recorded_event())

    def figures(self, steps: list[int]) -> dict[str, float]:
        """Microseconds from the end of a step to the point where the next one's inputs are ready, over those steps.

        That is idle time, the copy of the plan and `prepare_step`. `late_pct`: the share of steps that were not queued
        as a whole when the step before them ended; only then can the host have kept the device waiting.
        """
        gaps = sorted(1e3 * self._ended[i].elapsed_time(self._prepared[i + 1]) for i in steps)
        late = sum(self._was_late[i + 1] for i in steps)
        return {
            "gap_p50_us": round(gaps[len(gaps) // 2], 1),
            "gap_p99_us": round(gaps[int(0.99 * (len(gaps) - 1))], 1),
            "late_pct": round(100 * late / len(steps), 2),
        }


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class _TimedRunner(ModelRunner):
    clock: StepClock
    times_phases: bool
    times_gaps: bool

    def launch(self, buffer: int) -> Step:
        clock = self.clock
        clock.starts.append(time.perf_counter())
        if clock.log is not None:  # about 1 us, and the device has a step to do meanwhile
            clock.features.append(_core.step_features(self._transfers.words[buffer]))
        step = super().launch(buffer)
        clock.steps.append(step)
        clock.batches.append(step.num_rows if step.is_decode else -1)
        if self.times_gaps:
            clock.gaps.queued()
        return step

    def prepare(self, plan: torch.Tensor) -> None:
        since = time.perf_counter()
        super().prepare(plan)
        if self.times_phases:
            self.clock.add("prepare_step", since)
        if self.times_gaps:
            self.clock.gaps.prepared()

    def forward(self, input_ids: torch.Tensor, infer_state: InferStateInfo) -> torch.Tensor:
        since = time.perf_counter()
        logits = super().forward(input_ids, infer_state)
        if self.times_phases:
            self.clock.add("model", since)
        return logits

    def sample(self, logits: torch.Tensor, outputs: StepOutputs, *, greedy_only: bool) -> None:
        since = time.perf_counter()
        super().sample(logits, outputs, greedy_only=greedy_only)
        if self.times_phases:
            self.clock.add("sample", since)


def timed_runner(clock: StepClock, *, phases: bool = False, gaps: bool = False) -> type[ModelRunner]:
    """A ModelRunner that writes down when it did what.

    Args:
        phases: also the host's time in each phase of a step; on a CPU these run inside the step.
        gaps: also CUDA events between steps.
    """
    return type("TimedRunner", (_TimedRunner,), {"clock": clock, "times_phases": phases, "times_gaps": gaps})
