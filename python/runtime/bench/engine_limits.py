"""What the device allows the engine that is measured."""

from __future__ import annotations

from runtime.bench.engines import BenchEngine
from runtime.bench.limits import DEVICES, decode_step_s, offline_s, on_paper
from runtime.bench.rows import device_name
from runtime.bench.scenarios import Offline, Scenario


def decode_limit_s(engine: BenchEngine, scenario: Scenario) -> float | None:
    """Seconds that a decode step takes at least, at the middle of the outputs.

    None where the device is not known, and where several share the model.
    """
    if not _is_known(engine):
        return None
    context = scenario.input_len + scenario.output_len / 2
    return decode_step_s(on_paper(engine.model_dir), scenario.batch, context, device_name(engine.device))


def offline_limit_s(engine: BenchEngine, scenario: Offline) -> float | None:
    """Seconds that a closed batch takes at least; None as above, and where `offline_s` is none."""
    if not _is_known(engine):
        return None
    return offline_s(on_paper(engine.model_dir), scenario, device_name(engine.device))


def _is_known(engine: BenchEngine) -> bool:
    return engine.tensor_parallel_size == 1 and device_name(engine.device) in DEVICES
