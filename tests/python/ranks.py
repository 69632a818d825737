"""What tests see of the processes of ranks: children of a process that run `runtime.worker`."""

import os
import time
from pathlib import Path


def stat(pid):
    """Fields of /proc/<pid>/stat from the state on; None: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def runs(pid):
    found = stat(pid)
    return found is not None and found[0] != "Z"


def rank_pids(parent=None):
    """In the order of ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(entry.name)) and int(fields[1]) == (parent or os.getpid()):
            try:
                if b"runtime.worker" in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                pass
    return sorted(found)


def wait_until(holds, timeout_s=5.0):
    """Whether it came to hold in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def all_gone(pids):
    return wait_until(lambda: not any(runs(pid) for pid in pids))


def cpu_ticks(pid):
    fields = stat(pid)
    return int(fields[11]) + int(fields[12])


def listening_sockets(pid):
    """Inodes of the sockets of a process that accept connections."""
    own = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # that of listdir itself
            continue
        if target.startswith("socket:["):
            own.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(fields[9])
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            listening.add(fields[6])
    return own & listening
