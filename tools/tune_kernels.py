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
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_kernels

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "library"  # the entry that stands for cuBLAS
KINDS = [f"{op}{mode}" for op in ("token_attention", "context_attention", "linear") for mode in ("", "_deterministic")]


@dataclass(frozen=True)
class Problem:
    """One entry of the table and the shape that decides it."""

    op: str
    key: str
    model: str
    shape: tuple[int, ...]
    deterministic: bool = False

    @property
    def kind(self) -> str:
        return f"{self.op}_deterministic" if self.deterministic else self.op

    @property
    def bucket(self) -> str:
        """Of linear: the rows that its key names."""
        return self.key.removesuffix("_deterministic").rpartition("x")[2]


@dataclass(frozen=True)
class Candidate:
    problem: Problem
    config: tuple[tuple[str, Any], ...]


def _configs(**choices: list[Any]) -> list[tuple[tuple[str, Any], ...]]:
    return [tuple(zip(choices, values)) for values in itertools.product(*choices.values())]


def _gemv_configs() -> list[tuple[tuple[str, Any], ...]]:
    wide = _configs(block_n=[4, 8, 16], block_k=[512, 1024], num_warps=[4, 8])
    return [*wide, *_configs(block_n=[2, 4], block_k=[2048], num_warps=[4, 8])]


def _few_rows_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """For memory-bound products: two or more waves of tiles, or K split until there are."""
    tile_choices = [
        (32, 128, 4, 6),
        (64, 128, 4, 5),
        (64, 64, 4, 8),
        (128, 128, 4, 4),
        (128, 64, 4, 6),
        (32, 256, 4, 4),
    ]
    for (block_n, block_k, warps, stages), splits, swap in itertools.product(tile_choices, (1, 2, 4, 8), (False, True)):
        programs = num_out // block_n * splits
        too_big = stages * block_k * (block_n + bucket) * 2 > 220 << 10
        if too_big or not 100 <= programs <= 1400 * max(1, num_out // 28672) or num_in // splits < 2 * block_k:
            continue
        if swap and block_n < 64:
            continue
        yield from _configs(
            block_m=[bucket], block_n=[block_n], block_k=[block_k], num_warps=[warps], num_stages=[stages],
            splits=[splits], swap=[swap],
        )  # fmt: skip


def _many_rows_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """For 128 and 256 rows: near the ridge, so wide tiles."""
    tile_choices = [
        *[(128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 256, 64, 8, 3), (64, 256, 64, 4, 4), (128, 64, 128, 4, 3)],
        *[(256, 128, 64, 8, 3), (128, 128, 128, 8, 3), (64, 128, 128, 4, 3), (64, 128, 64, 4, 6), (64, 64, 128, 4, 4)],
        *[(128, 256, 64, 8, 4), (256, 128, 64, 8, 4), (64, 256, 64, 8, 4)],
    ]
    for (block_m, block_n, block_k, warps, stages), splits in itertools.product(tile_choices, (1, 2, 3, 4)):
        programs = -(-bucket // block_m) * (num_out // block_n) * splits
        if block_m > bucket or programs < 90 or (splits > 1 and programs > 500) or num_in // splits < 512:
            continue
        yield from _configs(
            block_m=[block_m], block_n=[block_n], block_k=[block_k], num_warps=[warps], num_stages=[stages],
            splits=[splits],
        )  # fmt: skip


def _prompt_configs() -> list[tuple[tuple[str, Any], ...]]:
    """For thousands of rows, bound by the matrix unit."""
    tile_choices = [
        *[(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4)],
        *[(128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 128, 8, 3)],
    ]
    names = ("block_m", "block_n", "block_k", "num_warps", "num_stages")
    return [tuple(zip(names, values)) for values in tile_choices]


def _linear_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    if bucket == 1:
        return iter(_gemv_configs())
    if bucket <= 64:
        return _few_rows_configs(bucket, num_out, num_in)
    if bucket <= 256:
        return _many_rows_configs(bucket, num_out, num_in)
    return iter(_prompt_configs())


def _deterministic_configs(bucket: int, num_out: int, num_in: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """The same tiles with the ranges of K that the weight's shape prescribes."""
    splits = importlib.import_module("runtime.kernels.linear_config").deterministic_splits(num_out, num_in)
    seen = set()
    for config in _linear_configs(bucket, num_out, num_in):
        values = {**dict(config), "splits": splits, "fold": bucket > 64 and splits > 1}
        seen.add(tuple(values.items()))
    return iter(sorted(seen, key=str))


# What decides a bucket, where not its largest number of rows alone: cuBLAS is slow at some that are no power of two.
ROWS_OF_BUCKET = {128: (80, 96, 128), 256: (144, 208, 256)}


def _linear_candidates(model: str) -> Iterator[Candidate]:
    weights = importlib.import_module("runtime.bench.kernel_cases").MODELS[model].weights
    for bucket, (_, num_out, num_in, _) in itertools.product((1, 16, 64, 256, 32, 128), weights):
        for num_rows in ROWS_OF_BUCKET.get(bucket, (bucket,)):
            problem = Problem("linear", f"{num_out}x{num_in}x{bucket}", model, (num_rows, num_out, num_in))
            yield from (Candidate(problem, config) for config in _linear_configs(bucket, num_out, num_in))
    for bucket, (_, num_out, num_in, _) in itertools.product((16, 64, 256, 8192, 32, 128), weights):
        if bucket == 8192 and num_out > 65536:  # an LM head never meets a prompt
            continue
        key = f"{num_out}x{num_in}x{bucket}_deterministic"
        problem = Problem("linear", key, model, (bucket, num_out, num_in), deterministic=True)
        yield from (Candidate(problem, config) for config in _deterministic_configs(bucket, num_out, num_in))


def _token_attention_configs(deterministic: bool) -> Iterator[tuple[tuple[str, Any], ...]]:
    grids = [
        *[(64, 4, 3, 2), (64, 4, 5, 1), (64, 4, 2, 3), (64, 2, 3, 2), (64, 2, 2, 3), (64, 8, 3, 2), (128, 4, 3, 1)],
        *[(32, 4, 4, 3), (32, 2, 4, 3), (32, 2, 3, 4), (32, 1, 3, 4), (32, 2, 2, 6), (16, 1, 4, 6), (16, 1, 3, 8)],
    ]
    if deterministic:  # its tile of keys is fixed
        grids = [(64, *rest) for rest in ((4, 3, 2), (4, 4, 2), (4, 2, 3), (2, 3, 2), (2, 2, 3), (8, 3, 2), (4, 5, 1))]
    for (key_tile, warps, stages, programs), min_share in itertools.product(grids, (1,) if deterministic else (1, 2)):
        values = dict(key_tile=key_tile, num_warps=warps, num_stages=stages, programs_per_sm=programs)
        yield tuple({**values, "min_share": min_share}.items())


RAGGED = 1  # third number of a shape: the second is the mean of different lengths


def _lengths(batch: int, length: int, ragged: int = 0) -> list[int]:
    chosen = random.Random(0)
    return [chosen.randint(length // 8, 2 * length - length // 8) if ragged else length for _ in range(batch)]


def _attention_candidates(model: str) -> Iterator[Candidate]:
    cases = importlib.import_module("runtime.bench.kernel_cases")
    row_bytes = str(cases.MODELS[model].heads.head_dim * 2)
    token_shapes: dict[str, list[tuple[int, ...]]] = {
        "few": [(1, 1000), (8, 1000), (8, 7000)],
        "many": [(64, 1000), (256, 1000), (256, 600, RAGGED)],
    }
    for deterministic in (False, True):
        mode = "_deterministic" if deterministic else ""
        for size, shapes in token_shapes.items():
            for shape, config in itertools.product(shapes, _token_attention_configs(deterministic)):
                key = f"{row_bytes}_{size}{mode}"
                yield Candidate(Problem("token_attention", key, model, shape, deterministic), config)
        key = row_bytes + mode
        problem = Problem("context_attention", key, model, (2, 4096), deterministic)
        tiles = [(128, 64, 8), (64, 64, 4)] + ([] if deterministic else [(128, 128, 8), (64, 128, 4), (64, 32, 4)])
        for (query_tile, key_tile, warps), stages in itertools.product(tiles, (2, 3, 4)):
            values = dict(query_tile=query_tile, key_tile=key_tile, num_warps=warps, num_stages=stages)
            yield Candidate(problem, tuple(values.items()))


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
    lengths = _lengths(*candidate.problem.shape)
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
    """The table: per op and key the configuration with the smallest product of times over the key's shapes."""
    products: dict[tuple[str, str, str], tuple[int, float]] = {}
    for row in rows:
        if "us" in row:
            at = (row["op"], row["key"], json.dumps(row["config"]))
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


def _write_table(found: dict[str, dict[str, Any]], device_name: str, capability: tuple[int, int], folder: Path) -> Path:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for tuning.jsonl and the table")
    parser.add_argument("--minutes", type=float, default=3.0, help="stop timing after this long, compilation included")
    parser.add_argument("--model", default="llama-3.1-8b", help="names with commas between, most important first")
    parser.add_argument("--only", default=",".join(KINDS), help="what to tune, with commas between")
    parser.add_argument("--rows", default="", help="of linear: tune these buckets of rows alone, with commas between")
    parser.add_argument("--compile-only", type=int, metavar="ARCH", help="compile the candidates for ARCH and stop")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton-cache"))
    check_kernels.make_importable()
    buckets = args.rows.split(",")
    candidates = [
        candidate
        for model in args.model.split(",")
        for candidate in itertools.chain(_attention_candidates(model), _linear_candidates(model))
        if candidate.problem.kind in args.only.split(",")
        and not (args.rows and candidate.problem.op == "linear" and candidate.problem.bucket not in buckets)
    ]
    import torch

    if args.compile_only is None and not torch.cuda.is_available():
        print("tune_kernels: times kernels on a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    if args.compile_only is None:
        properties = torch.cuda.get_device_properties(0)
        arch, num_sms = properties.major * 10 + properties.minor, properties.multi_processor_count
    else:
        arch, num_sms = args.compile_only, 132
    rows: list[dict[str, Any]] = []
    measured: set[Problem] = set()
    with ProcessPoolExecutor(
        max(1, (os.cpu_count() or 2) - 1), get_context("spawn"), initializer=_start_compiler, initargs=(arch, num_sms)
    ) as pool:
        for candidate, error in zip(candidates, pool.map(_compile, candidates)):
            if error:
                rows.append({**dataclasses.asdict(candidate.problem), "config": dict(candidate.config), "error": error})
            elif args.compile_only is not None:
                continue
            elif time.monotonic() < deadline:
                if candidate.problem.kind == "linear" and candidate.problem not in measured:
                    rows.append(_measure(Candidate(candidate.problem, ((LIBRARY, True),))))
                measured.add(candidate.problem)
                rows.append(_measure(candidate))
        pool.shutdown(cancel_futures=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tuning.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    failures = [row for row in rows if "error" in row]
    print(f"{len(candidates)} candidates, {len(rows) - len(failures)} timed, {len(failures)} failed")
    print(*sorted({f"  {row['op']}: {row['error'][:160]}" for row in failures})[:8], sep="\n")
    if args.compile_only is None:
        _print_best(rows)
        table = _best_entries(rows)
        print(_write_table(table, torch.cuda.get_device_name(), torch.cuda.get_device_capability(), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
