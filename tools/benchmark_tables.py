#!/usr/bin/env python3
"""Writes the tables of measured figures into README.md and docs/benchmarks/README.md, from the rows beside the latter.

    tools/benchmark_tables.py [--check]

--check changes nothing and fails when a page does not show what the rows say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs" / "benchmarks"
PAGES = (ROOT / "README.md", ROWS / "README.md")
# of rows that tell of another way than the engine's own, or of something else
UNUSUAL = {"deterministic", "overlap", "nccl_max_ctas", "gap_p50_us"}
MODELS = ("llama-3.1-8b", "qwen3-0.6b", "bloom-7b1")
IN_README = ("llama-3.1-8b",)
H200, H100 = FILES = ("gpu.jsonl", "gpu_h100.jsonl")
SHOWN_KERNELS = {
    "token_attention": "",
    "context_attention": "",
    "linear": "M=1$|all of one step",
    "sample": "256 x",
}  # patterns of their cases
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    path = ROWS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def usual(name: str = H200) -> list[Row]:
    """What scenarios took with the engine's defaults, when they were last measured."""
    found = [row for row in rows(name) if "scenario" in row and not UNUSUAL & row.keys()]
    return list({_key(row): row for row in found}.values())


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["tp"], row["scenario"]


def figure(row: Row) -> str:
    """What the scenario counts, with its unit."""
    if "tpot_ms" in row:
        return f"{row['tpot_ms']:.2f} ms"
    if row["scenario"].startswith(("startup", "fixed_1024", "prefix_512")):
        return f"{row['s']:.2f} s"
    return f"{row['tok_s']:,.0f} {row.get('counted', 'output')} tok/s"


def share(row: Row | None) -> str:
    return f"{row['pct_of_limit']:.0f} %" if row and "pct_of_limit" in row else ""


def table(models: tuple[str, ...]) -> Iterator[str]:
    """One line for each measured scenario: the figure, its share of the device's limit, and the peer's."""
    ours = [row for row in usual() if row.get("tp") == 1]
    peers = {(row["model"], row["scenario"]): row for row in rows("peers.jsonl") if row["tp"] == 1}
    devices = " and ".join(sorted({row["device"] for row in ours}))
    their_devices = " and ".join(sorted({row["device"] for row in peers.values()}))
    yield f"| model | scenario | {devices} | of its limit | vLLM 0.23.0, {their_devices} | of its limit |"
    yield "|---|---|---|---|---|---|"
    for model in models:
        for row in ours:
            if row["model"] == model:
                peer = peers.get((model, row["scenario"]))
                theirs = figure(peer) if peer else ""
                yield f"| {model} | `{row['scenario']}` | {figure(row)} | {share(row)} | {theirs} | {share(peer)} |"


def another_device() -> Iterator[str]:
    """The same scenarios where there is no peer's figure."""
    found = usual(H100)
    yield f"| model | scenario | {found[0]['device']} | of its limit |"
    yield "|---|---|---|---|"
    for row in found:
        yield f"| {row['model']} | `{row['scenario']}` | {figure(row)} | {share(row)} |"


def gaps() -> Iterator[str]:
    yield "| device | model | scenario | p50 | p99 | steps that the host queued late |"
    yield "|---|---|---|---|---|---|"
    for row in (row for name in FILES for row in rows(name)):
        if "gap_p50_us" in row and row["tp"] == 1:
            times = f"{row['gap_p50_us']} us | {row['gap_p99_us']} us | {row['late_pct']:.1f} %"
            yield f"| {row['device']} | {row['model']} | `{row['scenario']}` | {times} |"


def deterministic() -> Iterator[str]:
    """What `deterministic=True` costs in time."""
    yield "| device | model | scenario | usual | deterministic | cost |"
    yield "|---|---|---|---|---|---|"
    for name in FILES:
        runs = [row for row in rows(name) if row["tp"] == 1 and not (UNUSUAL - {"deterministic"}) & row.keys()]
        others = {_run_of(row): row for row in runs if "deterministic" not in row}
        for row in runs:
            if "deterministic" in row:
                other = others[_run_of(row)]
                key = "tpot_ms" if "tpot_ms" in row else "s"
                figures = f"{figure(other)} | {figure(row)} | {100 * (row[key] / other[key] - 1):.0f} %"
                yield f"| {row['device']} | {row['model']} | `{row['scenario']}` | {figures} |"


def _run_of(row: Row) -> tuple[str, ...]:
    return row["model"], row["scenario"], row["commit"]


def aims() -> Iterator[str]:
    """What each scenario is still from what it is to reach."""
    ours = {_key(row): row for row in usual()}
    yield "| model | devices | scenario | measured | aim | from it |"
    yield "|---|---|---|---|---|---|"
    for aim in json.loads((ROWS / "aims.json").read_text()):
        row = ours[_key(aim)]
        name = next(key for key in ("tpot_ms", "tok_s", "s") if key in aim)
        away = f"{100 * (row[name] / aim[name] - 1):+.0f} %"
        yield f"| {aim['model']} | {aim['tp']} | `{aim['scenario']}` | {figure(row)} | {figure(aim)} | {away} |"


def ranks() -> Iterator[str]:
    """Models that several devices hold together."""
    peers = {_key(row): row for row in rows("peers.jsonl")}
    ours = [row for row in usual() if row["tp"] > 1]
    devices = " and ".join(sorted({row["device"] for row in ours}))
    yield f"| model | devices | scenario | {devices} | vLLM 0.23.0, NVIDIA H200 |"
    yield "|---|---|---|---|---|"
    for row in ours:
        peer = peers.get(_key(row))
        theirs = figure(peer) if peer else ""
        yield f"| {row['model']} | {row['tp']} | `{row['scenario']}` | {figure(row)} | {theirs} |"


def allreduce() -> Iterator[str]:
    """Sums over ranks in a captured graph, with and without the norm that follows."""
    yield "| ranks | message | one-shot | with norm | two-shot | with norm | NCCL | and norm |"
    yield "|---|---|---|---|---|---|---|---|"
    keys = ("one_shot_us", "one_shot_norm_us", "two_shot_us", "two_shot_norm_us", "nccl_us", "nccl_norm_us")
    for row in rows("allreduce.jsonl"):
        times = " | ".join(f"{row[key]:.1f} us" for key in keys)
        yield f"| {row['tp']} | {row['bytes'] >> 10} KiB | {times} |"


def kernels() -> Iterator[str]:
    """The kernels that a step spends its time in, when they were last measured on an H200."""
    measured = [row for row in rows("kernels.jsonl") if row["device"] == "NVIDIA H200"]
    found = {(row["op"], row["case"], row["deterministic"]): row for row in measured}
    yield "| kernel | case | time | of a copy's bandwidth | TFLOP/s | cuBLAS, torch's attention | deterministic |"
    yield "|---|---|---|---|---|---|---|"
    for (op, case, deterministic), row in found.items():
        if not deterministic and re.search(SHOWN_KERNELS.get(op, "^$"), case):
            share = f"{row['pct_of_copy']:.0f} %" if "pct_of_copy" in row and op != "sample" else ""
            flops = f"{row['tflop_s']:.0f}" if op == "context_attention" else ""
            library = _microseconds(row.get("library_us"))
            other = _microseconds(found.get((op, case, True), {}).get("us"))
            yield f"| {op} | {case} | {_microseconds(row['us'])} | {share} | {flops} | {library} | {other} |"


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} us"


def filled(page: str) -> str:
    """The page with what stands between the markers made anew."""
    parts = {
        "gpu": table(MODELS),
        "gpu-short": table(IN_README),
        "gpu-h100": another_device(),
        "gaps": gaps(),
        "deterministic": deterministic(),
        "ranks": ranks(),
        "allreduce": allreduce(),
        "kernels": kernels(),
        "aims": aims(),
    }
    for name, lines in parts.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        if start in page:
            head, rest = page.split(start, 1)
            page = "".join([head, start, "\n", "\n".join(lines), "\n\n", end, rest.split(end, 1)[1]])
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    stale = [path for path in PAGES if filled(path.read_text()) != path.read_text()]
    for path in stale:
        if args.check:
            print(f"{path.relative_to(ROOT)}: the tables are not what the rows say: run tools/benchmark_tables.py")
        else:
            path.write_text(filled(path.read_text()))
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
