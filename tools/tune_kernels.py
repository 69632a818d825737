"""Finds the tile configurations of the hot kernels on this machine's CUDA device.

    python tools/tune_kernels.py --out DIR [--minutes 3] [--model llama-3.1-8b] [--only linear]

Candidates are compiled first, in parallel and without the device, into Triton's cache; then each is timed in captured
graphs over rotated inputs. DIR gets `tuning.jsonl` (every candidate) and `<device>.json`, the table with the best of
each shape class merged into the committed one: copy it to kernels/configs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_kernels
from tuning_candidates import KINDS, LIBRARY, Candidate, Problem, attention_candidates, lengths_of, linear_candidates

ROOT = Path(__file__).resolve().parent.parent
_PRETENDED_SMS = 132  # an H100's, where --compile-only names an architecture alone


def launcher(candidate: Candidate, device: Any, num_sets: int) -> tuple[Callable[[Any], object], list[Any]]:
    """The launch as a function of one input set, and the sets; on the CPU they are empty, for compiling alone."""
    makers = {"linear": _linear, "token_attention": _token_attention, "context_attention": _context_attention}
    return makers[candidate.problem.op](candidate, device, num_sets)


_inputs: dict[Any, Any] = {}  # of the problem at work


def _cached(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _inputs:
        _inputs.clear()
        _inputs[key] = make()
    return _inputs[key]


def _linear(candidate: Candidate, device: Any, num_sets: int) -> tuple[Callable[[Any], object], list[Any]]:
    import torch

    linear = importlib.import_module("runtime.kernels.linear")
    configs = importlib.import_module("runtime.kernels.linear_config")
    num_rows, num_out, num_in = candidate.problem.shape

    def random(*shape: int) -> torch.Tensor:
        tensor = torch.empty(*shape, dtype=torch.bfloat16, device=device)
        return tensor.normal_(0, num_in**-0.5) if device.type == "cuda" else tensor

    weights = _cached((num_out, num_in, device), lambda: [random(num_out, num_in) for _ in range(num_sets)])
    x, out = random(num_rows, num_in), random(num_rows, num_out)
    values = dict(candidate.config)
    if LIBRARY in values:
        return lambda w: torch.mm(x, w.t(), out=out), weights
    if num_rows == 1 and not candidate.problem.deterministic:
        gemv = configs.GemvConfig(**values)
        return lambda w: linear.launch_gemv(x, w, None, out, gemv), weights
    gemm = configs.GemmConfig(**values)
    return lambda w: linear.launch_gemm(x, w, None, out, gemm), weights


def _attention_sets(candidate: Candidate, device: Any, num_sets: int, num_new: int) -> list[Any]:
    import torch

    cases = importlib.import_module("runtime.bench.kernel_cases")
    heads = cases.MODELS[candidate.problem.model].heads
    lengths = lengths_of(*candidate.problem.shape)
    batch = len(lengths)

    def make() -> list[Any]:
        if device.type == "cuda":
            pool = cases.KvPool(heads, 4 << 30, cases.BLOCK_SIZE, torch.bfloat16, device)
            return [pool.inputs([num_new] * batch, lengths) for _ in range(num_sets)]
        # what a compilation sees: strides and alignment
        cache = torch.empty(2, heads.num_kv_heads, cases.BLOCK_SIZE, heads.head_dim, dtype=torch.bfloat16)
        ints = [torch.empty(n, dtype=torch.int32) for n in (batch, batch + 1, batch)]
        b_loc = torch.empty(batch, -(-max(lengths) // cases.BLOCK_SIZE), dtype=torch.int32)
        q = torch.empty(batch * num_new, heads.num_heads, heads.head_dim, dtype=torch.bfloat16)
        return [cases.AttentionInputs(q, cache, cache.clone(), (b_loc, *ints), num_new, max(lengths))]

    sets: list[Any] = _cached((candidate.problem.op, candidate.problem.model, candidate.problem.shape, device), make)
    return sets


def _scoring(candidate: Candidate) -> Any:
    tile = importlib.import_module("runtime.kernels.attention_tile")
    return tile.Scoring(128**-0.5, None, 0, 0.0, candidate.problem.deterministic)


def _token_attention(candidate: Candidate, device: Any, num_sets: int) -> tuple[Callable[[Any], object], list[Any]]:
    import torch

    module = importlib.import_module("runtime.kernels.token_attention")
    configs = importlib.import_module("runtime.kernels.tile_config")
    config, scoring = configs.TokenAttentionConfig(**dict(candidate.config)), _scoring(candidate)
    sets = _attention_sets(candidate, device, num_sets, 1)
    out = torch.empty_like(sets[0].q)

    def call(s: Any) -> None:
        b_loc, b_row, _, b_seq_len = s.tables
        tables = (b_loc, b_row, None, b_seq_len)
        module.launch_token_attention(s.q, s.k_cache, s.v_cache, *tables, s.max_len, out, scoring, config)

    return call, sets


def _context_attention(candidate: Candidate, device: Any, num_sets: int) -> tuple[Callable[[Any], object], list[Any]]:
    import torch

    module = importlib.import_module("runtime.kernels.context_attention")
    configs = importlib.import_module("runtime.kernels.tile_config")
    config, scoring = configs.ContextAttentionConfig(**dict(candidate.config)), _scoring(candidate)
    sets = _attention_sets(candidate, device, min(num_sets, 4), candidate.problem.shape[1])
    out = torch.empty_like(sets[0].q)

    def call(s: Any) -> None:
        rest = (*s.tables, s.max_new_tokens, out)
        module.launch_context_attention(s.q, s.k_cache, s.v_cache, *rest, scoring, config)

    return call, sets


def _start_compiler(arch: int, num_sms: int) -> None:
    check_kernels.start_worker()
    check_kernels.pretend_device(arch)
    device: Any = importlib.import_module("runtime.kernels.device")
    device._name_and_sms = lambda _: ("", num_sms)


def _compile(candidate: Candidate) -> str | None:
    """None, or why the candidate does not compile."""
    import torch

    try:
        call, sets = launcher(candidate, torch.device("cpu"), 1)
        call(sets[0])
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[-700:]}"
    return None


def _bytes_per_call(problem: Problem) -> int:
    if problem.op == "linear":
        return 2 * problem.shape[1] * problem.shape[2]
    return problem.shape[0] * problem.shape[1] * 4096


def _measure(candidate: Candidate) -> dict[str, Any]:
    import torch

    timing = importlib.import_module("runtime.bench.gpu_timing")
    num_sets = timing.num_input_sets(_bytes_per_call(candidate.problem))
    row: dict[str, Any] = {**dataclasses.asdict(candidate.problem), "config": dict(candidate.config)}
    try:
        call, sets = launcher(candidate, torch.device("cuda"), num_sets)
        row["us"] = round(timing.microseconds(call, sets, num_replays=5, min_calls=8), 2)
    except Exception as e:
        row["error"] = f"{type(e).__name__}: {str(e)[-700:]}"
    return row


def _best_entries(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The table: per op and key the configuration with the smallest product of times over the key's shapes; of
    attention also for all numbers of query heads together, for those that were not measured."""
    products: dict[tuple[str, str, str], tuple[int, float]] = {}
    for row in rows:
        for key in sorted({row["key"], re.sub(r"^(\d+)x\d+_(few|many)", r"\1_\2", row["key"])} if "us" in row else ()):
            at = (row["op"], key, json.dumps(row["config"]))
            count, product = products.get(at, (0, 1.0))
            products[at] = (count + 1, product * row["us"])
    most: dict[tuple[str, str], int] = {}
    for (op, key, _), (count, _) in products.items():
        most[op, key] = max(count, most.get((op, key), 0))
    table: dict[str, dict[str, Any]] = {}
    best: dict[tuple[str, str], float] = {}
    for (op, key, config), (count, product) in products.items():
        if count == most[op, key] and product < best.get((op, key), float("inf")):
            best[op, key] = product
            chosen = json.loads(config)
            table.setdefault(op, {})[key] = None if LIBRARY in chosen else chosen
    return table


def write_table(found: dict[str, dict[str, Any]], device_name: str, capability: tuple[int, int], folder: Path) -> Path:
    """Writes a device's table, the committed one with these entries in it, into `folder`; its path.

    Args:
        found: by op, then by key: the entry, None where the library is best.
    """
    name = f"{device_name.replace(' ', '_')}.json"
    committed = ROOT / "kernels" / "configs" / name
    table = json.loads(committed.read_text()) if committed.exists() else {}
    for op, entries in found.items():
        table.setdefault(op, {}).update(entries)
    lines = [f'  "compute_capability": {json.dumps(list(capability))}']
    table.pop("compute_capability", None)
    for op, entries in sorted(table.items()):
        inside = ",\n".join(f"    {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items()))
        lines.append(f"  {json.dumps(op)}: {{\n{inside}\n  }}")
    target = folder / name
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return target


def _print_best(rows: list[dict[str, Any]]) -> None:
    problems: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        problems.setdefault((row["op"], row["key"], row["shape"]), []).append(row)
    for (op, key, shape), found in problems.items():
        timed = sorted((row for row in found if "us" in row), key=lambda row: float(row["us"]))
        if not timed:
            print(f"{op} {key}: no candidate ran; first error: {found[0]['error']}")
            continue
        library = [f"library {row['us']}" for row in timed if LIBRARY in row["config"]]
        shown = "; ".join(f"{row['us']} {','.join(str(int(v)) for v in row['config'].values())}" for row in timed[:3])
        print(f"{op} {key} {shape}: {shown} {' '.join(library)}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for tuning.jsonl and the table")
    parser.add_argument("--minutes", type=float, default=3.0, help="stop timing after this long, compilation included")
    parser.add_argument("--model", default="llama-3.1-8b", help="names with commas between, most important first")
    parser.add_argument("--only", default=",".join(KINDS), help="what to tune, with commas between")
    parser.add_argument("--rows", default="", help="of linear: tune these buckets of rows alone, with commas between")
    parser.add_argument("--ranks", type=int, default=1, help="of linear: the weights that one of so many ranks holds")
    parser.add_argument("--compile-only", type=int, metavar="ARCH", help="compile the candidates for ARCH and stop")
    return parser.parse_args()


def _candidates(args: argparse.Namespace) -> list[Candidate]:
    """What the command line asks for, most important first."""
    kinds, buckets = args.only.split(","), args.rows.split(",")
    return [
        candidate
        for model in args.model.split(",")
        for candidate in itertools.chain(attention_candidates(model), linear_candidates(model, args.ranks))
        if candidate.problem.kind in kinds
        and not (args.rows and candidate.problem.op == "linear" and candidate.problem.bucket not in buckets)
    ]


def _target(compile_only: int | None) -> tuple[int, int]:
    """Architecture (90 is compute capability 9.0) and multiprocessors of what is compiled for."""
    if compile_only is not None:
        return compile_only, _PRETENDED_SMS
    import torch

    properties = torch.cuda.get_device_properties(0)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def _compiled(candidates: list[Candidate], target: tuple[int, int]) -> Iterator[tuple[Candidate, str | None]]:
    """Each candidate, in order, with why it does not compile; many are compiled at a time, ahead of who asks."""
    num_workers = max(1, (os.cpu_count() or 2) - 1)
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_start_compiler, initargs=target) as pool:
        yield from zip(candidates, pool.map(_compile, candidates))
        pool.shutdown(cancel_futures=True)


def _rows(compiled: Iterable[tuple[Candidate, str | None]], deadline: float) -> Iterator[dict[str, Any]]:
    """What did not compile, and until `deadline`, in seconds of time.monotonic(), the times of what did.

    The first candidate of a linear shape comes behind the library's own kernel.
    """
    measured: set[Problem] = set()
    for candidate, error in compiled:
        if error:
            yield {**dataclasses.asdict(candidate.problem), "config": dict(candidate.config), "error": error}
        elif time.monotonic() < deadline:
            if candidate.problem.kind == "linear" and candidate.problem not in measured:
                yield _measure(Candidate(candidate.problem, ((LIBRARY, True),)))
            measured.add(candidate.problem)
            yield _measure(candidate)


def _print_counts(rows: list[dict[str, Any]], num_candidates: int) -> None:
    failures = [row for row in rows if "error" in row]
    print(f"{num_candidates} candidates, {len(rows) - len(failures)} timed, {len(failures)} failed")
    print(*sorted({f"  {row['op']}: {row['error'][:160]}" for row in failures})[:8], sep="\n")


def main() -> int:
    args = _parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes if args.compile_only is None else 0.0
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton-cache"))
    check_kernels.make_importable()
    candidates = _candidates(args)
    import torch

    if args.compile_only is None and not torch.cuda.is_available():
        print("tune_kernels: times kernels on a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    rows = list(_rows(_compiled(candidates, _target(args.compile_only)), deadline))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tuning.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _print_counts(rows, len(candidates))
    if args.compile_only is None:
        _print_best(rows)
        table = _best_entries(rows)
        print(write_table(table, torch.cuda.get_device_name(), torch.cuda.get_device_capability(), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
