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


def rows_of(path: Path) -> list[Row]:
    """Those of sums in a .jsonl file."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["scenario"] == "allreduce"]


def measured(ranks: list[int], append: Path | None) -> Iterator[Row]:
    """A row for each size and number of ranks, also appended to a .jsonl file."""
    from runtime.bench import all_reduce
    from runtime.bench.rows import append_row, environment

    for num_ranks in ranks:
        for row in all_reduce.measure(num_ranks):
            found: Row = {"engine": "runtime", **row, **environment("cuda")}
            if append is not None:
                append_row(found, append)
            yield found


def limits_by_ranks(rows: list[Row]) -> dict[str, Row]:
    """Limits of one-shot and two-shot sums, by number of ranks; printed as they are found."""
    from runtime.bench.all_reduce import limits_of

    found: dict[str, Row] = {}
    for num_ranks in sorted({row["tp"] for row in rows}):
        found[str(num_ranks)] = limits_of([row for row in rows if row["tp"] == num_ranks])
        print(f"{num_ranks} ranks: {found[str(num_ranks)]}")
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--ranks", help="numbers of GPUs, with commas between; default: 2, 4 and 8 where there are")
    parser.add_argument("--append", type=Path, help="a .jsonl file for what was measured")
    parser.add_argument("--rows", type=Path, help="a .jsonl file of what was measured before")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    from runtime.engine.device import stated_device

    if args.rows is not None:
        rows = rows_of(args.rows)
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
    limits = limits_by_ranks(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    print(write_table({"all_reduce": limits}, rows[0]["device"], capability, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
