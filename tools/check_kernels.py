"""Compiles the Triton kernels for sm_80, sm_90 and sm_100 on a machine without a GPU, and checks what they use.

    python tools/check_kernels.py [--arch 90] [--case rms_norm] [--jobs 2]

The cases are in tests/kernels/compile_cases.py: each calls an op with empty host tensors, and what the launch would
compile is compiled. Printed per kernel: registers and stack bytes of a thread, shared memory of a program. It fails
when a kernel does not compile, spills registers (unless its case allows that; 16 bytes pass for sm_80 and sm_100), or
takes more shared memory than a program may have. Cases that may spill, which are rare variants, are compiled for sm_90
alone unless --arch says otherwise. Binaries are kept in build/triton-cache.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY_KIB = {80: 163, 90: 227, 100: 227}  # of one program
# ptxas may spill a register or two of a 250-register loop to fit one more program: only where speed is measured is
# that a failure
STACK_BYTES = {80: 16, 90: 0, 100: 16}

DEVICES = {90: "NVIDIA H200"}  # whose tiles are compiled; what its table lacks is another's of the generation


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes."""

    kernel: str
    registers: int
    stack_bytes: int  # of a thread; spilled registers live there
    shared_bytes: int


def make_importable() -> None:
    """`runtime.kernels` from the tree, whether the C++ core that `runtime` itself imports is built or not."""
    spec = importlib.machinery.ModuleSpec("runtime", loader=None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "python" / "runtime")]
    sys.modules["runtime"] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "tests" / "kernels"))


def pretend_device(arch: int) -> None:
    """Makes Triton compile for `arch` as if such a device were there."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    class OfflineDriver(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            self.get_current_stream = lambda device: 0
            self.get_current_device = lambda: arch  # Triton caches kernels by device

        @staticmethod
        def is_active() -> bool:
            return False

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", arch, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise RuntimeError("no device to time on")

        def get_empty_cache_for_benchmark(self) -> Any:
            raise RuntimeError("no device to time on")

        def clear_cache(self, cache: Any) -> None:
            pass

    driver.set_active(OfflineDriver())
    launch: Any = importlib.import_module("runtime.kernels.launch")
    launch.capability = lambda device: (arch // 10, arch % 10)
    tile_config: Any = importlib.import_module("runtime.kernels.tile_config")
    tile_config.device_name = lambda device: DEVICES.get(arch, "")


def record_launches() -> list[Any]:
    """From now on a launch compiles its kernel and appends it to the list that this returns."""
    from triton.runtime.jit import JITFunction

    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(self, *args, grid=(1,), warmup=True, **kwargs))
        return kernels[-1]

    JITFunction.run = compile_only
    return kernels


def usage_of(kernel: Any) -> Usage:
    """Reads the cubin with the disassembler in Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        text = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return Usage(kernel.metadata.name, registers, stack + local, kernel.metadata.shared)


def check_case(arch: int, index: int) -> tuple[list[str], list[str]]:
    """Lines of the table and failures of one case; runs in a worker process set up for `arch` and others."""
    pretend_device(arch)
    case = importlib.import_module("compile_cases").CASES[index]
    kernels.clear()
    label = f"sm_{arch}  {case.name}"
    try:
        case.launch()
    except Exception as e:
        return [], [f"{label}: {type(e).__name__}: {e}"]
    lines, failures = [], []
    for usage in map(usage_of, kernels):
        lines.append(
            f"sm_{arch:<4} {case.name:44} {usage.kernel:36} {usage.registers:4} {usage.stack_bytes:6} "
            f"{usage.shared_bytes / 1024:8.1f}"
        )
        if usage.stack_bytes > STACK_BYTES[arch] and not case.may_spill:
            failures.append(f"{label}: {usage.kernel} spills {usage.stack_bytes} bytes a thread")
        if usage.shared_bytes > SHARED_MEMORY_KIB[arch] * 1024:
            failures.append(
                f"{label}: {usage.kernel} takes {usage.shared_bytes} bytes of shared memory; "
                f"the limit is {SHARED_MEMORY_KIB[arch]} KiB"
            )
    if not kernels:
        failures.append(f"{label}: launched no kernel")
    return lines, failures


kernels: list[Any] = []


def start_worker() -> None:
    global kernels
    make_importable()
    kernels = record_launches()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", type=int, choices=SHARED_MEMORY_KIB, action="append", help="only this one")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton-cache"))
    make_importable()
    cases = importlib.import_module("compile_cases").CASES
    tasks = [
        (arch, i)
        for i, case in enumerate(cases)
        if args.case in case.name
        for arch in args.arch or ([90] if case.may_spill else SHARED_MEMORY_KIB)
    ]
    print(f"{'target':7} {'case':44} {'kernel':36} {'regs':>4} {'stack':>6} {'shared KiB':>8}")
    failures: list[str] = []
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), initializer=start_worker) as pool:
        for lines, failed in pool.map(_check, tasks):
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)
            failures += failed
    print(*(f"FAILED {failure}" for failure in failures), f"{len(tasks)} cases, {len(failures)} failures", sep="\n")
    return 1 if failures or not tasks else 0


def _check(task: tuple[int, int]) -> tuple[list[str], list[str]]:
    return check_case(*task)


if __name__ == "__main__":
    sys.exit(main())
