"""What `runtime doctor` says of the machine around the GPUs: memory, limits, the port, the compiled kernels."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime.cli.doctor_device import num_gpus
from runtime.cli.finding import FAIL, OK, WARN, Result

_SHM = Path("/dev/shm")
# two buffers of `piece_bytes` (csrc/include/runtime/communicator.h) a rank
_SHM_BYTES_PER_RANK = 2 << 20
_NCCL_SHM_BYTES = 64 << 20  # of GPUs that cannot write to each other's memory
_ENGINE_FILES = 256  # weights, libraries, the pipes and sockets of ranks
_THREADS_PER_RANK = 64  # torch's pools, compilers, CUDA, NCCL
_SERVER_THREADS = 64
_CACHE_BYTES = 256 << 20  # free for compiled kernels
_LISTENING = "0A"  # a state of /proc/net/tcp
_MAX_PORT = 65535


def memory() -> Result:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return OK, f"{total / 2**30:.1f} GiB, {os.cpu_count()} CPUs", ""


def shm() -> Result:
    if not _SHM.is_dir():
        return WARN, f"{_SHM} is missing: one rank only", "mount a tmpfs there"
    return judge_shm(shutil.disk_usage(_SHM).free, num_gpus())


def judge_shm(free: int, gpus: int) -> Result:
    """Against what as many ranks as there are GPUs need; two on a CPU."""
    ranks = max(gpus, 2)
    needed = ranks * _SHM_BYTES_PER_RANK
    detail = f"{_SHM} has {free >> 20} MiB free, {ranks} ranks need {needed >> 20}"
    if free < needed:
        return FAIL, detail, "give a container --shm-size=1g; files of dead programs may fill it"
    if gpus > 1 and free < needed + _NCCL_SHM_BYTES:
        return WARN, f"{detail} and NCCL up to {_NCCL_SHM_BYTES >> 20}", "give a container --shm-size=1g"
    return OK, detail, ""


def open_files() -> Result:
    """Against what the engine opens and the connections that `serve` accepts by default."""
    import resource

    from runtime.server.config import ServerConfig

    soft, hard = (_number(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    needed = ServerConfig.max_connections + _ENGINE_FILES
    if soft >= needed:
        return OK, f"{_count(soft)} open files allowed", ""
    raised = f"ulimit -n {needed}" if hard >= needed else f"raise the hard limit of {hard:.0f} to {needed} as root"
    if soft < _ENGINE_FILES:
        return FAIL, f"{_count(soft)} open files allowed, the engine needs up to {_ENGINE_FILES}", raised
    detail = f"{_count(soft)} open files allowed, `serve` accepts {ServerConfig.max_connections} connections"
    return WARN, detail, f"{raised}, or serve --max-connections {max(int(soft) - _ENGINE_FILES, 1)}"


def locked_memory() -> Result:
    import resource

    soft = _number(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    if soft == float("inf"):
        return OK, "no limit on locked memory", ""
    status = WARN if num_gpus() else OK
    return status, f"{int(soft) >> 10} KiB may be locked", "ulimit -l unlimited" if status == WARN else ""


def processes() -> Result:
    import resource

    soft = _number(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    if os.geteuid() == 0 or soft == float("inf"):
        return OK, "no limit on processes", ""
    return judge_processes(int(soft), _num_threads(os.geteuid()), max(num_gpus(), 2))


def judge_processes(limit: int, used: int, ranks: int) -> Result:
    """A limit counts the threads of all of a user's processes."""
    needed = ranks * _THREADS_PER_RANK + _SERVER_THREADS
    detail = f"{limit} processes and threads allowed, {used} are there"
    if limit - used >= needed:
        return OK, detail, ""
    status = FAIL if limit - used < _THREADS_PER_RANK else WARN
    return status, f"{detail}, {ranks} ranks and a server take up to {needed}", f"ulimit -u {used + needed}"


def port(asked: int | None = None) -> Result:
    """`asked`: what must be free; None for the default, whose being held may be meant."""
    from runtime.server.config import ServerConfig

    number, status = (ServerConfig.port, WARN) if asked is None else (asked, FAIL)
    if not 1 <= number <= _MAX_PORT:
        return FAIL, f"--port={number}", f"must be between 1 and {_MAX_PORT}; nearest: {min(max(number, 1), _MAX_PORT)}"
    problem = _why_not(number)
    if problem is None:
        return OK, f"{number} is free", ""
    if problem == errno.EADDRINUSE:
        return status, f"{number} is held by {_holder(number)}", f"serve --port {_free_port(number)}, or end it"
    return status, f"{number}: {os.strerror(problem)}", f"serve --port {_free_port(max(number, 1024))}"


def kernel_cache() -> Result:
    """Where Triton keeps compiled kernels; without it every start compiles them again, or cannot."""
    path = _cache_path()
    problem, unusable = _write_problem(path), FAIL if num_gpus() else WARN
    if problem:
        return unusable, f"{path}: {problem}", "TRITON_CACHE_DIR=FOLDER names one that you may write to"
    free, files = shutil.disk_usage(_existing(path)).free, [file for file in path.rglob("*") if file.is_file()]
    detail = f"{path}: {sum(file.stat().st_size for file in files) / 2**20:.0f} MiB in {len(files)} files"
    if free < _CACHE_BYTES:
        return WARN, f"{detail}, {free >> 20} MiB are free", "make room, or TRITON_CACHE_DIR=FOLDER on another disk"
    return OK, detail, ""


def _number(limit: int) -> float:
    import resource

    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _count(limit: float) -> str:
    return "unlimited" if limit == float("inf") else f"{limit:.0f}"


def _num_threads(user: int) -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # it has ended
            continue
    return count


def _why_not(number: int) -> int | None:
    """The error of listening there as `serve` does; None where it works."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
            listener.listen()
        except OSError as error:
            return error.errno
    return None


def _free_port(number: int) -> int:
    """The nearest one above, or 0: the system chooses."""
    above = range(number + 1, min(number + 100, _MAX_PORT + 1))
    return next((one for one in above if _why_not(one) is None), 0)


def _holder(number: int) -> str:
    for user, inode in _listeners(number):
        for process in Path("/proc").glob("[0-9]*"):
            if _has_socket(process, inode):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        return f"a process of user {user}"
    return "another process"


def _listeners(number: int) -> Iterator[tuple[str, str]]:
    """User and socket of those who listen on a port, https://docs.kernel.org/networking/proc_net_tcp.html."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            words = line.split()
            if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == number:
                yield words[7], words[9]


def _has_socket(process: Path, inode: str) -> bool:
    try:
        return any(os.readlink(file) == f"socket:[{inode}]" for file in (process / "fd").iterdir())
    except OSError:  # it has ended, or is somebody else's
        return False


def _cache_path() -> Path:
    """As Triton chooses it."""
    chosen = os.environ.get("TRITON_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def _write_problem(path: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=_existing(path)):
            return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
