"""The compiled scheduler under a virtual clock: workloads, step times, fleets, and what they would see."""

from runtime.simulation.calibration import StepLog, calibrate, fit_step_times, nnls
from runtime.simulation.capacity import Capacity, find_capacity
from runtime.simulation.replay import Replay, replay
from runtime.simulation.roofline import Device, kv_tokens, roofline, tile_tokens
from runtime.simulation.run import Report, Settings, Slo, simulate
from runtime.simulation.step_times import CALIBRATION_VERSION, StepTimes, load_calibration
from runtime.simulation.traces import read_trace
from runtime.simulation.workloads import WORKLOADS, Workload

__all__ = [
    "CALIBRATION_VERSION",
    "WORKLOADS",
    "Capacity",
    "Device",
    "Replay",
    "Report",
    "Settings",
    "Slo",
    "StepLog",
    "StepTimes",
    "Workload",
    "calibrate",
    "find_capacity",
    "fit_step_times",
    "kv_tokens",
    "load_calibration",
    "nnls",
    "read_trace",
    "replay",
    "roofline",
    "simulate",
    "tile_tokens",
]
