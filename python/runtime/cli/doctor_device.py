"""What `runtime doctor` says of the driver, the GPUs, the links between them, and NCCL.

Each check asks a tool or torch and hands the answer to a function that judges it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from runtime.cli.finding import FAIL, OK, WARN, Result
from runtime.errors import ConfigError

_TIMEOUT_S = 20
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # the header is underlined even where nobody sees it
Pair = tuple[int, int]


@dataclass(frozen=True)
class Answer:
    """Of `nvidia-smi`: its exit code, None where it did not come to an end, and what it wrote."""

    code: int | None
    text: str


@dataclass(frozen=True)
class Gpu:
    """A device as torch sees it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


def num_gpus() -> int:
    """GPUs that torch can use."""
    import torch

    with warnings.catch_warnings():  # torch warns of a driver with a paragraph; `gpus` has the sentence
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def driver() -> Result:
    return judge_driver(_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader"))


def gpus() -> Result:
    import torch

    from runtime.engine.device import why_no_cuda

    if not num_gpus():
        has_driver = shutil.which("nvidia-smi") is not None
        return judge_no_gpus(*why_no_cuda()) if has_driver else (OK, "none", "")
    found = [torch.cuda.get_device_properties(i) for i in range(num_gpus())]
    return judge_gpus([Gpu(one.name, one.total_memory, (one.major, one.minor)) for one in found])


def links() -> Result:
    import torch

    count = num_gpus()
    if count < 2:
        return OK, "no links: fewer than two GPUs", ""
    answer = _nvidia_smi("topo", "-m")
    topology = answer.text if answer is not None and answer.code == 0 else ""
    reached = {
        (i, j): torch.cuda.can_device_access_peer(i, j) and torch.cuda.can_device_access_peer(j, i)
        for i in range(count)
        for j in range(i + 1, count)
    }
    return judge_links(read_topology(topology, os.environ.get("CUDA_VISIBLE_DEVICES", "")), reached)


def nccl() -> Result:
    """By the search of the communicator."""
    from runtime.parallel import find_nccl

    count = num_gpus()
    try:
        path, version = find_nccl()
    except ConfigError as error:
        return judge_no_nccl(error.message, error.hint, count)
    return OK, f"{version // 10000}.{version // 100 % 100}.{version % 100} at {path}", ""


def judge_driver(answer: Answer | None) -> Result:
    """`answer`: to the query for driver versions, a line a GPU; None where there is no nvidia-smi."""
    if answer is None:
        return OK, "no NVIDIA driver: models run on the CPU", ""
    if answer.code is None:
        return (
            FAIL,
            f"nvidia-smi has not answered in {_TIMEOUT_S} s",
            "`dmesg | grep Xid` names a GPU that hangs; reboot",
        )
    first = next(iter(answer.text.strip().splitlines()), "nvidia-smi says nothing").strip()
    if "version mismatch" in first:
        return FAIL, first, "reboot: the driver was updated, and the old one is still loaded"
    if "No devices were found" in first:
        return FAIL, "the driver finds no GPU", "`dmesg | grep NVRM` says why; a container needs --gpus all"
    if answer.code:
        return FAIL, first, "reinstall the NVIDIA driver, or reboot"
    return OK, f"NVIDIA {first}", ""


def judge_no_gpus(reason: str, fix: str) -> Result:
    """A driver is there, but torch sees no GPU: `reason` and `fix` of `why_no_cuda`."""
    return FAIL, f"a driver is there, but {reason}", fix or "install a CUDA build of torch"


def judge_gpus(found: Sequence[Gpu]) -> Result:
    from runtime.engine.device import MIN_CAPABILITY

    names = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB, sm_{gpu.capability[0]}{gpu.capability[1]})" for gpu in found
    )
    old = [gpu.name for gpu in found if gpu.capability < MIN_CAPABILITY]
    if old:
        needed = ".".join(map(str, MIN_CAPABILITY))
        return FAIL, names, f"{old[0]} is too old: compute capability {needed} or later is needed; --device cpu works"
    return OK, names, ""


def read_topology(text: str, visible: str = "") -> dict[Pair, str]:
    """The links in the matrix of `nvidia-smi topo -m`, such as "NV18" or "PHB", by the driver's numbers of two GPUs.

    Args:
        text: the matrix.
        visible: CUDA_VISIBLE_DEVICES; with numbers in it, the links between these GPUs only.
    """
    lines = [_ESCAPES.sub("", line).split() for line in text.splitlines()]
    header = next((words for words in lines if words[:1] == ["GPU0"]), [])
    columns = [int(name[3:]) for name in header if re.fullmatch(r"GPU\d+", name)]
    rows = {int(words[0][3:]): words[1:] for words in lines if words and re.fullmatch(r"GPU\d+", words[0])}
    numbers = re.fullmatch(r"\d+(,\d+)*", visible)
    wanted = {int(number) for number in visible.split(",")} if numbers else set(columns)
    return {(i, j): kind for i, kinds in rows.items() for j, kind in zip(columns, kinds) if i < j and {i, j} <= wanted}


def judge_links(kinds: Mapping[Pair, str], reached: Mapping[Pair, bool]) -> Result:
    """`kinds`: of the links, by two GPUs; `reached`: whether they can write to each other's memory."""
    by_kind: dict[str, list[Pair]] = {}
    for pair, kind in sorted(kinds.items()):
        by_kind.setdefault(kind if kind.startswith("NV") else f"PCIe ({kind})", []).append(pair)
    detail = (
        "; ".join(_pairs(kind, pairs, kinds) for kind, pairs in by_kind.items()) or "`nvidia-smi topo -m` is silent"
    )
    apart = [pair for pair, can in reached.items() if not can]
    if apart:
        what = _pairs("no peer access", apart, reached)
        return WARN, f"{detail}; {what}", "all sums go through NCCL; `nvidia-smi topo -p2p w` says what forbids it"
    if not by_kind:
        return WARN, f"{detail}; every GPU can write to the others' memory", "update the driver to see the links"
    if all(kind.startswith("NV") for kind in by_kind):
        return OK, detail, ""
    return WARN, detail, _pcie_fix([pair for pair, kind in sorted(kinds.items()) if kind.startswith("NV")])


def _pcie_fix(joined: Sequence[Pair]) -> str:
    if not joined:
        return "ranks add up over PCIe, which is slow: one server a GPU where the model fits into one"
    group = {joined[0][0], *(j for i, j in joined if i == joined[0][0])}
    return f"ranks are fastest within NVLink: CUDA_VISIBLE_DEVICES={','.join(map(str, sorted(group)))}"


def _pairs(what: str, pairs: Sequence[Pair], all_pairs: Collection[Pair]) -> str:
    if len(pairs) == len(all_pairs):
        return f"{what} between all {len(pairs)} pairs" if len(pairs) > 1 else f"{what} between both"
    return f"{what}: {', '.join(f'{i}-{j}' for i, j in pairs)}"


def judge_no_nccl(message: str, hint: str, count: int) -> Result:
    """NCCL was not found for `count` GPUs; somebody who names one in the environment wants it."""
    if count > 1:
        return FAIL, message, hint
    if os.environ.get("RUNTIME_NCCL_LIB"):
        return WARN, message, hint
    return OK, "none, and not needed: ranks on a CPU share memory, one GPU has no others", ""


def _nvidia_smi(*arguments: str) -> Answer | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Answer(None, "")
    return Answer(done.returncode, done.stdout + done.stderr)
