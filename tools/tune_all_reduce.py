"""Finds up to which size sums over this machine's GPUs go one-shot, two-shot and through NCCL.

    python tools/tune_all_reduce.py --out DIR [--ranks 2,4] [--append FILE] [--rows FILE]

DIR gets `<device>.json`, the committed table with the limits of these numbers of ranks: copy it to kernels/configs/.
What is measured is `runtime bench allreduce`; --append keeps its rows. --rows measures nothing and takes such rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tune_kernels import write_table

Row = dict[str, Any]


def measured(ranks: list[int], append: Path | None) -> Iterator[Row]:
    from runtime.bench import all_reduce
    from runtime.bench.rows import append_row, environment

    for num_ranks in ranks:
        for row in all_reduce.measure(num_ranks):
            found: Row = {"engine": "runtime", **row, **environment("cuda")}
            if append is not None:
                append_row(found, append)
            yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--ranks", help="numbers of GPUs, with commas between; default: 2, 4 and 8 where there are")
    parser.add_argument("--append", type=Path, help="a .jsonl file for what was measured")
    parser.add_argument("--rows", type=Path, help="a .jsonl file of what was measured before")
    args = parser.parse_args()
    from runtime.bench.all_reduce import limits_of
    from runtime.engine.device import stated_device

    if args.rows is not None:
        rows = [row for row in map(json.loads, args.rows.read_text().splitlines()) if row["scenario"] == "allreduce"]
        capability = stated_device(rows[0]["device"], None).capability
    else:
        import torch

        count = torch.cuda.device_count()
        ranks = [int(n) for n in args.ranks.split(",")] if args.ranks else [n for n in (2, 4, 8) if n <= count]
        if not ranks:
            print(f"tune_all_reduce: two GPUs or more are needed, torch sees {count}", file=sys.stderr)
            return 2
        rows = list(measured(ranks, args.append))
        capability = torch.cuda.get_device_capability()
    found: dict[str, Row] = {}
    for num_ranks in sorted({row["tp"] for row in rows}):
        found[str(num_ranks)] = limits_of([row for row in rows if row["tp"] == num_ranks])
        print(f"{num_ranks} ranks: {found[str(num_ranks)]}")
    args.out.mkdir(parents=True, exist_ok=True)
    print(write_table({"all_reduce": found}, rows[0]["device"], capability, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
