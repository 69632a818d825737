"""`runtime doctor` where something is wrong: the conditions are made, or told in the words of the tools."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from runtime.cli import doctor, doctor_device, doctor_system
from runtime.cli.doctor_device import Answer, Gpu
from runtime.cli.finding import FAIL, OK, WARN
from runtime.cli.main import main

# `nvidia-smi topo -m`: the words are separated by tabs, the header is underlined
NVSWITCH = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tNV18\tPIX\t0-47\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tNV18\tNODE\t0-47\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tNV18\tSYS\t48-95\t1\t\tN/A
GPU3\tNV18\tNV18\tNV18\t X \tSYS\t48-95\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
"""
PCIE = """\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tPHB\t0-63\t0\t\tN/A
GPU1\tPHB\t X \t0-63\t0\t\tN/A
"""
BRIDGES = """        GPU0    GPU1    GPU2    GPU3    CPU Affinity
GPU0     X      NV4     SYS     SYS     0-31
GPU1    NV4      X      SYS     SYS     0-31
GPU2    SYS     SYS      X      NV4     32-63
GPU3    SYS     SYS     NV4      X      32-63
"""
ALL = {(i, j): True for i in range(4) for j in range(i + 1, 4)}


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are so many."""

    def pretend(count):
        for module in (doctor_device, doctor_system):
            monkeypatch.setattr(module, "num_gpus", lambda: count)

    return pretend


def lines(capsys, *arguments):
    code = main(["doctor", "--json", *arguments])
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    return code, {row["subject"]: (row["status"], row["detail"], row["fix"]) for row in rows}


def in_child(call, prepare=""):
    """What a check finds in a process of its own."""
    script = f"{prepare}\nfrom runtime.cli import doctor_system\nprint(repr(doctor_system.{call}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.fixture
def held():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_held_port_fails_where_it_was_asked_for(capsys, held):
    code, found = lines(capsys, "--port", str(held))
    status, detail, fix = found["port"]
    assert code == 69 and status == FAIL and f"{held} is held by " in detail and f"(process {os.getpid()})" in detail
    instead = int(fix.split("--port ")[1].split(",")[0])
    assert instead > held and doctor_system.port(instead) == (OK, f"{instead} is free", "")


def test_a_held_default_port_is_a_warning(capsys, held, monkeypatch):
    from runtime.server.config import ServerConfig

    monkeypatch.setattr(ServerConfig, "port", held)
    code, found = lines(capsys)
    assert code == 0 and found["port"][0] == WARN


def test_a_port_that_does_not_exist():
    assert doctor_system.port(70000) == (FAIL, "--port=70000", "must be between 1 and 65535; nearest: 65535")


@pytest.mark.parametrize(
    "soft, hard, status, words",
    [
        (100, 100, FAIL, ["100 open files allowed, the engine needs up to 256", "raise the hard limit of 100 to 4352"]),
        (1024, 8192, WARN, ["accepts 4096 connections", "ulimit -n 4352, or serve --max-connections 768"]),
        (8192, 8192, OK, ["8192 open files allowed"]),
    ],
)
def test_open_files(soft, hard, status, words):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    out = in_child("open_files()", limit)
    assert out.startswith(f"('{status}'") and all(word in out for word in words)


def test_processes():
    assert doctor_system.judge_processes(4096, 100, 8) == (OK, "4096 processes and threads allowed, 100 are there", "")
    status, detail, fix = doctor_system.judge_processes(500, 100, 8)
    assert status == WARN and "8 ranks and a server take up to 576" in detail and fix == "ulimit -u 676"
    assert doctor_system.judge_processes(120, 100, 2)[0] == FAIL


def test_locked_memory():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); "
    pretend = "from runtime.cli import doctor_system; doctor_system.num_gpus = lambda: {}"
    assert in_child("locked_memory()", limit + pretend.format(0)).startswith("('OK', '64 KiB may be locked', '')")
    assert "('WARN', '64 KiB may be locked', 'ulimit -l unlimited')" in in_child(
        "locked_memory()", limit + pretend.format(1)
    )


def test_shared_memory(monkeypatch, tmp_path):
    assert doctor_system.judge_shm(1 << 30, 8) == (OK, "/dev/shm has 1024 MiB free, 8 ranks need 16", "")
    status, detail, fix = doctor_system.judge_shm(64 << 20, 8)  # what a container has by default
    assert status == WARN and "64 MiB free, 8 ranks need 16 and NCCL up to 64" in detail and "--shm-size" in fix
    assert doctor_system.judge_shm(64 << 20, 0)[0] == OK
    assert doctor_system.judge_shm(1 << 20, 0)[:2] == (FAIL, "/dev/shm has 1 MiB free, 2 ranks need 4")
    monkeypatch.setattr(doctor_system, "_SHM", tmp_path / "none")
    assert doctor_system.shm()[0] == WARN


def test_what_is_said_of_shared_memory_is_what_a_group_takes():
    from runtime._core import Communicator

    unique_id = Communicator.unique_id("shm")
    file = Path("/dev/shm", unique_id.decode().removeprefix("shm:"))
    with ThreadPoolExecutor() as pool:
        groups = [pool.submit(Communicator, unique_id, 0, 2, timeout_s=30)]
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        num_bytes = file.stat().st_size
        groups.append(pool.submit(Communicator, unique_id, 1, 2, timeout_s=30))
        assert all(group.result() for group in groups)
    assert abs(num_bytes - 2 * doctor_system._SHM_BYTES_PER_RANK) < 1 << 20


def test_a_kernel_cache_that_cannot_be_written(monkeypatch, gpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    gpus(0)
    status, detail, fix = doctor_system.kernel_cache()
    assert status == WARN and "file/cache: not a directory" in detail and "TRITON_CACHE_DIR=FOLDER" in fix
    gpus(1)
    assert doctor_system.kernel_cache()[0] == FAIL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_kernel_cache_of_somebody_else(monkeypatch, tmp_path):
    tmp_path.chmod(0o555)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert "permission denied" in doctor_system.kernel_cache()[1]


def test_a_kernel_cache_is_measured(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    folder = tmp_path / ".triton" / "cache"
    assert doctor_system.kernel_cache() == (OK, f"{folder}: 0 MiB in 0 files", "")
    assert not folder.exists()
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "kernel.cubin").write_bytes(bytes(3 << 20))
    assert doctor_system.kernel_cache() == (OK, f"{folder}: 3 MiB in 1 files", "")
    monkeypatch.setattr(doctor_system, "_CACHE_BYTES", 1 << 60)
    assert doctor_system.kernel_cache()[0] == WARN


# What the tools of a GPU machine say


@pytest.mark.parametrize(
    "answer, status, words",
    [
        (None, OK, ["no NVIDIA driver"]),
        (Answer(0, "580.95.05\n580.95.05\n"), OK, ["NVIDIA 580.95.05"]),
        (
            Answer(18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.124\n"),
            FAIL,
            ["Driver/library version mismatch", "reboot: the driver was updated"],
        ),
        (
            Answer(
                9,
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
                "latest NVIDIA driver is installed and running.\n\n",
            ),
            FAIL,
            ["couldn't communicate", "reinstall the NVIDIA driver, or reboot"],
        ),
        (Answer(6, "No devices were found\n"), FAIL, ["the driver finds no GPU", "--gpus all"]),
        (Answer(1, ""), FAIL, ["nvidia-smi says nothing"]),
        (Answer(None, ""), FAIL, ["has not answered in 20 s", "Xid"]),
    ],
)
def test_drivers(answer, status, words):
    found = doctor_device.judge_driver(answer)
    assert found[0] == status and all(word in "; ".join(found) for word in words)


def tool(folder, monkeypatch, script):
    """An nvidia-smi of this text."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_driver_that_torch_cannot_use(capsys, monkeypatch, tmp_path):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update ...")

    tool(tmp_path, monkeypatch, "echo 470.57.02")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    code, found = lines(capsys)
    status, detail, fix = found["gpus"]
    assert code == 69 and status == FAIL and found["driver"] == (OK, "NVIDIA 470.57.02", "")
    assert "the NVIDIA driver supports CUDA 11.4, and torch" in detail and "needs CUDA 12.8" in detail
    assert fix == "update the driver, or install a torch built for CUDA 11.4 or older"


def test_a_driver_beside_a_torch_without_cuda(monkeypatch, tmp_path):
    tool(tmp_path, monkeypatch, "echo 580.95.05")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    status, detail, fix = doctor_device.gpus()
    assert (status, fix) == (FAIL, "install a CUDA build of torch") and "built without CUDA" in detail


def test_a_driver_that_hangs(monkeypatch, tmp_path):
    tool(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(doctor_device, "_TIMEOUT_S", 0.2)
    assert doctor_device.driver()[0] == FAIL


def test_devices():
    h200, t4 = Gpu("NVIDIA H200", 140 << 30, (9, 0)), Gpu("Tesla T4", 15 << 30, (7, 5))
    assert doctor_device.judge_gpus([h200]) == (OK, "NVIDIA H200 (140 GiB, sm_90)", "")
    status, detail, fix = doctor_device.judge_gpus([h200, t4])
    assert status == FAIL and "Tesla T4 (15 GiB, sm_75)" in detail
    assert "Tesla T4 is too old: compute capability 8.0 or later is needed" in fix


@pytest.mark.parametrize(
    "text, visible, reached, expected",
    [
        (NVSWITCH, "", ALL, (OK, "NV18 between all 6 pairs", "")),
        (NVSWITCH, "1,3", {(0, 1): True}, (OK, "NV18 between both", "")),
        (
            PCIE,
            "",
            {(0, 1): True},
            (
                WARN,
                "PCIe (PHB) between both",
                "ranks add up over PCIe, which is slow: one server a GPU where the model fits into one",
            ),
        ),
        (
            BRIDGES,
            "",
            ALL,
            (
                WARN,
                "NV4: 0-1, 2-3; PCIe (SYS): 0-2, 0-3, 1-2, 1-3",
                "ranks are fastest within NVLink: CUDA_VISIBLE_DEVICES=0,1",
            ),
        ),
        (
            PCIE,
            "",
            {(0, 1): False},
            (
                WARN,
                "PCIe (PHB) between both; no peer access between both",
                "all sums go through NCCL; `nvidia-smi topo -p2p w` says what forbids it",
            ),
        ),
        (
            "",
            "",
            {(0, 1): True},
            (
                WARN,
                "`nvidia-smi topo -m` is silent; every GPU can write to the others' memory",
                "update the driver to see the links",
            ),
        ),
    ],
)
def test_links(text, visible, reached, expected):
    assert doctor_device.judge_links(doctor_device.read_topology(text, visible), reached) == expected


def test_links_are_asked_of_the_tools(monkeypatch, gpus, tmp_path):
    gpus(2)
    tool(tmp_path, monkeypatch, f"printf '{PCIE}'")
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda i, j: i < j)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor_device.links()[1] == "PCIe (PHB) between both; no peer access between both"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has loaded NCCL")
@pytest.mark.parametrize("count, status", [(0, WARN), (1, WARN), (2, FAIL)])
def test_an_nccl_that_is_not_there(monkeypatch, gpus, count, status):
    monkeypatch.setenv("RUNTIME_NCCL_LIB", "/no/such/libnccl.so.2")
    gpus(count)
    found = doctor_device.nccl()
    assert found[0] == status and "NCCL cannot be loaded from /no/such/libnccl.so.2" in found[1]
    assert "RUNTIME_NCCL_LIB" in found[2]


def test_an_nccl_that_is_found(monkeypatch):
    import runtime.parallel

    monkeypatch.setattr(runtime.parallel, "find_nccl", lambda: ("/lib/libnccl.so.2", 22809))
    assert doctor_device.nccl() == (OK, "2.28.9 at /lib/libnccl.so.2", "")


def test_every_finding_that_is_not_ok_has_a_fix(capsys):
    _, found = lines(capsys)
    assert list(found) == list(doctor.CHECKS)
    assert all(status == OK or fix for status, _, fix in found.values())
