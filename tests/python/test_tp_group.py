"""Groups of processes: what they compute, and what they say when one of them fails."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from runtime._core import Communicator
from runtime.errors import CapacityError, CommunicatorError, ConfigError
from runtime.parallel import TpGroup, init_tp_group, make_unique_id

PROGRAM = Path(__file__).with_name("tp_rank.py")
TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
CUDA = pytest.param("cuda", id="nccl", marks=TWO_GPUS)
DEVICES = [pytest.param("cpu", id="shm"), CUDA]


@contextmanager
def ranks(case, size, device="cpu", timeout_s=60.0, present=None):
    """Starts the ranks, or those of `present`; kills what is left of them at the end."""
    unique_id = make_unique_id(device)
    processes = []
    try:
        for rank in range(size) if present is None else present:
            command = [sys.executable, str(PROGRAM), case, str(rank), str(size), device]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
            processes.append(process)
            process.stdin.write(f"{unique_id.hex()}\n{timeout_s}\n")
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        if device == "cpu":
            name = unique_id.decode().removeprefix("shm:")
            assert not list(Path("/dev/shm").glob(f"{name}*")), "shared memory was left behind"


def wait_for(word, processes):
    for process in processes:
        assert process.stdout.readline() == f"{word}\n", process.stderr.read()


def result(process, timeout=100):
    """What the rank printed, or the last line of its error."""
    out, err = process.communicate(timeout=timeout)
    return out.splitlines()[-1] if process.returncode == 0 else err.splitlines()[-1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case, size", [("collectives", 2), ("collectives", 3), ("rank_order", 3)])
def test_collectives(case, size, device):
    if device == "cuda" and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    with ranks(case, size, device) as processes:
        assert [result(process) for process in processes] == ["equal"] * size


@pytest.mark.parametrize("device", [CUDA])
def test_a_collective_is_captured(device):
    with ranks("captured", 2, device) as processes:
        assert [result(process) for process in processes] == ["equal"] * 2


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", ["peer_sums", "peer_sums_captured", "sums_beside_nccl", "sums_by_copies"])
def test_sums_over_peer_memory(case, size, device):
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    with ranks(case, size, device, timeout_s=20.0) as processes:
        assert [result(process, timeout=90) for process in processes] == ["equal"] * size


@pytest.mark.parametrize(
    "case, device",
    [("lost_peer", "cpu"), pytest.param("lost_peer", "cuda", marks=TWO_GPUS)]
    + [pytest.param(case, "cuda", marks=TWO_GPUS) for case in ("lost_writer", "lost_copier")],
)
def test_a_collective_whose_peer_dies_ends(case, device):
    with ranks(case, 2, device) as processes:
        wait_for("joined", processes)
        wait_for("ready", processes)
        processes[1].kill()
        assert f"rank 1 (process {processes[1].pid}) died" in result(processes[0])


def test_a_rank_that_dies_is_named_at_once():
    with ranks("barrier", 3) as processes:
        wait_for("joined", processes)
        processes[1].kill()
        killed_at = time.monotonic()
        processes[2].stdin.write("\n")
        words = f"rank 1 (process {processes[1].pid}) died, in collective 1, barrier"
        for rank in (0, 2):
            assert words in result(processes[rank])
        assert time.monotonic() - killed_at < 30  # not the 60 s that a rank waits for the others


def test_a_rank_that_stands_still_is_named():
    with ranks("barrier", 3, timeout_s=1.0) as processes:
        wait_for("joined", processes)
        processes[1].send_signal(signal.SIGSTOP)
        processes[2].stdin.write("\n")
        for rank in (0, 2):
            assert "rank 1 has not arrived within 1 s, in collective 1, barrier" in result(processes[rank])


@pytest.mark.parametrize(
    "present, words",
    [([0, 2], "rank 1 has not arrived within 1 s, as the group was opened"), ([1], "rank 1 has waited 1 s for rank 0")],
)
def test_a_rank_that_never_comes_is_named(present, words):
    with ranks("barrier", 3, timeout_s=1.0, present=present) as processes:
        for process in processes:
            assert words in result(process)


def test_a_rank_that_dies_before_the_group_is_open_is_named():
    with ranks("barrier", 3, present=[0, 1]) as processes:
        name = Path("/proc", str(processes[1].pid), "maps")
        while "/dev/shm/runtime-" not in name.read_text():  # not in the group's memory yet
            time.sleep(0.01)
        time.sleep(0.2)
        processes[1].kill()
        assert f"rank 1 (process {processes[1].pid}) died, as the group was opened" in result(processes[0])


@pytest.mark.parametrize(
    "error, rank, size, device, words",
    [
        (ConfigError, 2, 2, "cpu", "rank=2: must be from 0 to 1"),
        (ConfigError, 0, 65, "cpu", "size=65: must be from 1 to 64"),
        (ConfigError, 0, 2, "cuda", "unique_id is one of backend 'shm'; ranks on cuda need 'nccl'"),
        (ConfigError, 0, 2, "meta", "device='meta' has no collectives; possible: cpu, cuda"),
        (CommunicatorError, 0, 2, "cpu", "rank 1 has not arrived within 0.05 s, as the group was opened"),
    ],
)
def test_refused(error, rank, size, device, words):
    with pytest.raises(error, match=words):
        init_tp_group(Communicator.unique_id("shm"), rank, size, device, 0.05)


def test_too_little_shared_memory():
    with pytest.raises(CapacityError, match="a group of 2 ranks needs .* MiB in /dev/shm, .* --shm-size"):
        Communicator(Communicator.unique_id("shm"), 0, 2, piece_bytes=2**44)


def test_memory_that_a_dead_program_left_is_removed():
    """Only of groups, older than a minute, and held by nobody."""
    names = ["runtime-" + letter * 32 for letter in "abc"] + ["another-" + "d" * 32]
    _, held, young, _ = files = [Path("/dev/shm", name) for name in names]
    try:
        for file in files:
            file.write_bytes(b"left")
            os.utime(file, (0, 0 if file != young else time.time()))
        with held.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            Communicator(Communicator.unique_id("shm"), 0, 1)
        assert [file.exists() for file in files] == [False, True, True, True]
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_a_backend_that_is_not_there():
    with pytest.raises(ConfigError, match="backend=mpi: must be shm or nccl"):
        Communicator.unique_id("mpi")


def test_nccl_that_is_not_there():
    """In a process of its own: the first NCCL that is found stays."""
    code = "from runtime import _core; _core.load_nccl('/nowhere/libnccl.so')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1
    assert "ConfigError: NCCL cannot be loaded from /nowhere/libnccl.so: " in process.stderr.splitlines()[-1]


def test_ranks_meet_and_exchange_bytes():
    with ranks("barrier", 3) as processes:
        for process in processes[1:]:
            process.stdin.write("\n")
        assert [result(process) for process in processes] == ["met"] * 3


def test_a_group_of_one():
    group = init_tp_group(b"", 0, 1, "cpu")
    x = torch.randn(3, 5)
    assert type(group) is TpGroup
    for same in (group.all_reduce(x), group.all_gather(x), group.broadcast(x)):
        assert torch.equal(same, x)
    group.barrier()
    group.close()
