"""Breaks the ranks of an engine in every way that a machine can, and writes down what a user sees and when.

    python tools/rank_faults.py [--device cpu|cuda] [--ranks N] [--log FILE] [--only NAMES]

Each drill starts an engine in a process of its own and looks at it from outside: seconds from the fault to the first
error (seen), to the last request's (errors) and to the last process's end (gone), whether shared memory is left, and
the sentence that the caller gets. FILE gets a Markdown table. The exit status is 1 when a drill broke a promise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rank_program import START_S, Program

SEEN_S, ERRORS_S, GONE_S = 1.0, 2.0, 5.0  # what is promised
STEP_TIMEOUT_S = 2.0

# A family whose rank 1 goes wrong once a file is there.
FAMILY = """
import os
from pathlib import Path
import torch
from runtime.basemodel import register_model
from runtime.models.llama import LlamaTpPartModel

@register_model("faulty")
class Faulty(LlamaTpPartModel):
    def run(self, input_ids, infer_state):
        fault = Path(os.environ["RANK_FAULT"])
        if self.tp_rank_ == self.world_size_ - 1 and fault.exists():
            what = fault.read_text()
            if what == "raise":
                raise ValueError("experts are out of luck")
            if what == "skip":
                return torch.zeros(infer_state.batch_size, self.vocab_size, device=self.device)
        return super().run(input_ids, infer_state)
"""


@dataclass
class Row:
    """What one drill showed; None: it has no such time."""

    name: str
    sentence: str = ""
    seen_s: float | None = None
    errors_s: float | None = None
    gone_s: float | None = None
    broken: list[str] = field(default_factory=list)


class Drills:
    """One method a drill; those that kill take the ranks above 0 in turn."""

    def __init__(self, device: str, num_ranks: int, folder: Path) -> None:
        self.device, self.num_ranks, self.folder = device, num_ranks, folder
        self._num_kills = 0
        (folder / "faulty_family.py").write_text(FAMILY)
        self._write_faulty_model()

    # ---- killed ranks ---------------------------------------------------------------------

    def nothing(self) -> Row:
        """an engine that nothing is done to"""
        row, program = Row("nothing"), self._program(max_tokens=50)
        with program:
            self._need(program.wait_for("ready"), row, "did not start")
            start_s = program.events[-1]["t"] - program.events[0]["t"]
            self._need(program.wait_for("end"), row, "did not end")
            errors = [event for event in program.events if event["event"] == "error"]
            self._need(not errors, row, f"errors: {errors[:1]}")
            row.sentence = f"ready in {start_s:.1f} s, {sum(e['event'] == 'result' for e in program.events)} results"
        return row

    def kill_at_start(self) -> Row:
        """SIGKILL of a rank as soon as it is there"""
        return self._kill_starting("kill at start", lambda _: True)

    def kill_at_load(self) -> Row:
        """SIGKILL of a rank while it loads"""
        return self._kill_starting("kill at load", Program.ranks_have_joined)

    def kill_in_prefill(self) -> Row:
        """SIGKILL of a rank while prompts are computed"""
        return self._kill_serving("kill in prefill", "submitted", prompt_len=700, max_tokens=300, wait_for_tokens=False)

    def kill_in_decode(self) -> Row:
        """SIGKILL of a rank while all requests decode"""
        return self._kill_serving("kill in decode", "serving")

    def kill_in_drain(self) -> Row:
        """SIGKILL of a rank as the engine is closed with requests under way"""
        row, program = Row("kill in drain"), self._program(close=True)
        with program:
            program.wait_for("submitted")
            pid = self._next_rank(program)
            self._need(program.wait_for("serving"), row, "did not serve")
            fault = time.monotonic()
            with contextlib.suppress(ProcessLookupError):  # it may have ended already
                os.kill(pid, signal.SIGKILL)
            self._collect(program, row, fault)
            self._need(row.sentence != "", row, "no request has ended with an error")
        return row

    def kill_rank_0(self) -> Row:
        """SIGKILL of the caller's process"""
        row, program = Row("kill rank 0"), self._program()
        with program:
            self._need(program.wait_for("serving"), row, "did not serve")
            program.ranks()
            fault = time.monotonic()
            program.process.kill()
            program.process.wait()
            self._account(program, row, fault)
            row.sentence = "(there is nobody to tell)"
        return row

    # ---- ranks that stand still or go wrong ------------------------------------------------

    def stop(self) -> Row:
        """SIGSTOP of a rank while all requests decode"""
        row, program = Row("stop"), self._program()
        with program:
            self._need(program.wait_for("serving"), row, "did not serve")
            fault, pid = time.monotonic(), self._next_rank(program)
            os.kill(pid, signal.SIGSTOP)
            self._collect(program, row, fault, STEP_TIMEOUT_S)
            self._need("does not respond" in row.sentence, row, "the rank is not named")
        return row

    def skip_collective(self) -> Row:
        """the last rank leaves out the collectives of a step"""
        return self._fault("skip a collective", "skip", f"rank {self.num_ranks - 1} ", STEP_TIMEOUT_S)

    def raise_in_forward(self) -> Row:
        """the last rank raises in its forward"""
        words = f"rank {self.num_ranks - 1} failed in step"
        return self._fault("raise in forward", "raise", words, 0.0, "ValueError: experts are out of luck")

    # ---- what a machine lacks --------------------------------------------------------------

    def one_device_too_few(self) -> Row:
        """one rank more than there are GPUs"""
        import torch

        size = torch.cuda.device_count() + 1
        return self._refused("one GPU too few", "device", arguments={"device": "cuda", "tensor_parallel_size": size})

    def nccl_absent(self) -> Row:
        """no NCCL where it is said to be"""
        code = "from runtime import _core; _core.load_nccl('/nowhere/libnccl.so.2')"
        return self._script("NCCL absent", "cannot be loaded from /nowhere/libnccl.so.2", [["-c", code]])

    def nccl_of_two_versions(self) -> Row:
        """ranks with NCCL 2.28.9 and 2.27.3, pretended ones"""
        code = """
            import os, sys, time
            from runtime import _core
            _core.load_nccl(sys.argv[1])
            rank = int(sys.argv[2])
            if rank == 0:
                unique_id = _core.Communicator.unique_id("nccl")
                open(sys.argv[3] + ".part", "wb").write(unique_id)
                os.rename(sys.argv[3] + ".part", sys.argv[3])
            else:
                while not os.path.exists(sys.argv[3]):
                    time.sleep(0.01)
                unique_id = open(sys.argv[3], "rb").read()
            _core.Communicator(unique_id, rank, 2, timeout_s=10.0)
        """
        try:
            libraries = [str(self._pretended_nccl(version)) for version in (22809, 22703)]
        except (OSError, subprocess.CalledProcessError) as error:
            return Row("NCCL of two versions", f"not tried: {error}")
        name = str(self.folder / "unique_id")
        ranks = [["-c", textwrap.dedent(code), library, str(rank), name] for rank, library in enumerate(libraries)]
        return self._script("NCCL of two versions", "rank 1 has NCCL 2.27.3, rank 0 2.28.9", ranks)

    def small_shared_memory(self) -> Row:
        """/dev/shm of 8 KiB"""
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
            return Row("small /dev/shm", "not tried: unshare -m needs root")
        mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8k tmpfs /dev/shm && exec "$0" "$@"']
        return self._refused("small /dev/shm", "/dev/shm", before=mount)

    def few_descriptors(self) -> Row:
        """12 open files"""
        return self._refused("ulimit -n", "ulimit -n", ulimits={"RLIMIT_NOFILE": 12})

    def small_files(self) -> Row:
        """files of 4 KiB"""
        return self._refused("ulimit -f", "ulimit -f", ulimits={"RLIMIT_FSIZE": 4096})

    def little_address_space(self) -> Row:
        """ulimit -v of 3 GiB"""
        return self._refused("ulimit -v", "", ulimits={"RLIMIT_AS": 3 << 30})

    # ---- parts ----------------------------------------------------------------------------

    def _program(self, before: Sequence[str] = (), **settings: Any) -> Program:
        arguments = {
            "device": self.device,
            "tensor_parallel_size": self.num_ranks,
            "max_num_batched_tokens": 256,
            "step_timeout": STEP_TIMEOUT_S,
            "num_kv_blocks": 1024,
            **settings.pop("arguments", {}),
        }
        values: dict[str, Any] = {
            "prompt_len": 40,
            "max_tokens": 900,  # enough for a GPU to be found at work
            "wait_for_tokens": True,
            "close": False,
            "ulimits": {},
            "modules": [],
            "arguments": arguments,
            **settings,
        }
        paths = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        return Program(values, {"PYTHONPATH": paths, "RANK_FAULT": str(self.folder / "fault")}, before)

    def _next_rank(self, program: Program) -> int:
        self._num_kills += 1
        return program.wait_for_rank(self._num_kills % (self.num_ranks - 1))

    def _kill(self, program: Program) -> float:
        pid = self._next_rank(program)
        fault = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return fault

    def _kill_starting(self, name: str, is_ready: Callable[[Program], bool]) -> Row:
        with self._program() as program:
            row = Row(name)
            program.wait_for("begin")
            program.wait_for_rank(self.num_ranks - 2)
            self._need(program.wait_until(lambda: is_ready(program)), row, "never came so far")
            self._collect(program, row, self._kill(program))
            self._need("was killed by SIGKILL" in row.sentence, row, "the rank is not named")
        return row

    def _kill_serving(self, name: str, event: str, **settings: Any) -> Row:
        row, program = Row(name), self._program(**settings)
        with program:
            self._need(program.wait_for(event), row, "did not serve")
            time.sleep(0.1)
            self._collect(program, row, self._kill(program))
            self._need("was killed by SIGKILL" in row.sentence, row, "the rank is not named")
        return row

    def _fault(self, name: str, what: str, words: str, patience_s: float, more: str = "") -> Row:
        arguments = {"model": str(self.folder / "faulty"), "enforce_eager": True}
        row, program = Row(name), self._program(arguments=arguments, modules=["faulty_family"])
        fault_file = self.folder / "fault"
        with program:
            self._need(program.wait_for("serving"), row, "did not serve")
            program.ranks()
            fault = time.monotonic()
            fault_file.write_text(what)
            self._collect(program, row, fault, patience_s)
            self._need(words in row.sentence and more in row.sentence, row, f"the sentence lacks {words!r}, {more!r}")
        fault_file.unlink(missing_ok=True)
        return row

    def _refused(self, name: str, words: str, **settings: Any) -> Row:
        """An engine that cannot start."""
        row, program = Row(name), self._program(**settings)
        with program:
            fault = time.monotonic()
            self._collect(program, row, fault, START_S)
            self._need(words in row.sentence, row, f"the sentence lacks {words!r}")
        row.seen_s = row.errors_s = None
        return row

    def _script(self, name: str, words: str, commands: Sequence[Sequence[str]]) -> Row:
        started = time.monotonic()
        processes = [
            subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) for command in commands
        ]
        ends = [process.communicate(timeout=60)[1].strip().splitlines() or [""] for process in processes]
        row = Row(name, ends[0][-1].removeprefix("runtime.errors."), gone_s=time.monotonic() - started)
        for lines in ends:
            self._need(words in lines[-1], row, f"the sentence lacks {words!r}: {lines[-1]}")
        return row

    def _collect(self, program: Program, row: Row, fault: float, patience_s: float = 0.0) -> None:
        """Reads to the end; the times, and what they should have been."""
        program.ranks()
        program.wait_for("end")
        errors = [event for event in program.events if event["event"] == "error"]
        if errors:
            row.sentence = errors[0]["text"]
            row.seen_s, row.errors_s = (errors[i]["t"] - fault for i in (0, -1))
            self._need(row.seen_s <= SEEN_S + patience_s, row, f"seen after more than {SEEN_S + patience_s:g} s")
            self._need(
                row.errors_s <= ERRORS_S + patience_s, row, f"errors after more than {ERRORS_S + patience_s:g} s"
            )
        else:
            row.sentence = program.last_words()
            row.broken.append("no error has come")
        self._account(program, row, fault, patience_s)

    def _account(self, program: Program, row: Row, fault: float, patience_s: float = 0.0) -> None:
        row.gone_s = program.gone(fault)
        self._need(row.gone_s is not None and row.gone_s <= GONE_S + patience_s, row, "processes are left")
        self._need(not program.left(), row, f"shared memory is left: {program.left()}")

    @staticmethod
    def _need(holds: bool, row: Row, otherwise: str) -> None:
        if not holds:
            row.broken.append(otherwise)

    def _write_faulty_model(self) -> None:
        from runtime.config import BUILTIN_MODEL

        shutil.copytree(BUILTIN_MODEL, self.folder / "faulty")
        path = self.folder / "faulty" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "faulty"}))

    def _pretended_nccl(self, version: int) -> Path:
        names = "CommInitRankConfig CommFinalize CommDestroy CommAbort CommGetAsyncError AllReduce AllGather"
        lines = [f"int nccl{name}() {{ return 0; }}" for name in [*names.split(), "ReduceScatter", "Broadcast"]]
        lines += [
            f"int ncclGetVersion(int* v) {{ *v = {version}; return 0; }}",
            "int ncclGetUniqueId(void* i) { return 0; }",
        ]
        lines += [f'const char* nccl{name}() {{ return ""; }}' for name in ("GetErrorString", "GetLastError")]
        source, library = (self.folder / f"nccl_{version}{end}" for end in (".c", ".so"))
        source.write_text("\n".join(lines))
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, source], check=True, capture_output=True)
        return library


DRILLS: list[Callable[[Drills], Row]] = [
    *[Drills.nothing, Drills.kill_at_start, Drills.kill_at_load, Drills.kill_in_prefill, Drills.kill_in_decode],
    *[Drills.kill_in_drain, Drills.kill_rank_0, Drills.stop, Drills.skip_collective, Drills.raise_in_forward],
    *[Drills.one_device_too_few, Drills.nccl_absent, Drills.nccl_of_two_versions, Drills.small_shared_memory],
    *[Drills.few_descriptors, Drills.small_files, Drills.little_address_space],
]


def heading(device: str, num_ranks: int) -> str:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{num_ranks} ranks, {name}, {versions}, {time.strftime('%Y-%m-%d')}"


def line(drill: Callable[[Drills], Row], row: Row) -> str:
    times = " | ".join("" if t is None else f"{t:.2f} s" for t in (row.seen_s, row.errors_s, row.gone_s))
    sentence = row.sentence.replace("|", "\\|")
    return f"| {row.name} | {drill.__doc__} | {times} | {'; '.join(row.broken) or 'yes'} | {sentence} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--ranks", type=int, default=2, help="default: 2")
    parser.add_argument("--log", type=Path, help="append the table to this file")
    parser.add_argument("--only", help="names of drills, with commas between")
    args = parser.parse_args()
    chosen = [drill for drill in DRILLS if not args.only or drill.__name__ in args.only.split(",")]
    titles = ("drill", "what", "seen", "errors", "gone", "as promised", "what the caller is told")
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        drills = Drills(args.device, args.ranks, Path(folder))
        for drill in chosen:
            row = drill(drills)
            broken += bool(row.broken)
            lines.append(line(drill, row))
            print(lines[-1], flush=True)
    if args.log is not None:
        with args.log.open("a") as log:
            log.write(f"\n## {heading(args.device, args.ranks)}\n\n" + "\n".join(lines) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
