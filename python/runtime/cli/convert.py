"""Turn a model folder into safetensors that load fast, from pytorch_model*.bin or other safetensors."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cli.inspect import describe, num_bytes
from runtime.errors import ConfigError, ModelFormatError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from runtime.loader import TensorToWrite

_KEEP = "keep"
_DTYPES = (_KEEP, "bfloat16", "float16", "float32")
_MIN_SHARD_BYTES = 1 << 10
# what a folder holds beside its weights: configuration, tokenizer, chat template, licence; no code
_TEXT_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".md"}
_TEXT_NAMES = ("LICENSE", "NOTICE")
_INDEX_SUFFIX = ".index.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder of a checkpoint")
    parser.add_argument("destination", metavar="DST", help="folder to make")
    parser.add_argument("--dtype", choices=_DTYPES, default=_KEEP, help="of the tensors of DST")
    parser.add_argument(
        "--max-shard-size", type=num_bytes, default="5GB", metavar="BYTES", help="of one file; 512MiB is understood too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that DST holds")


def run(args: argparse.Namespace) -> int:
    source, destination = Path(args.source), Path(args.destination)
    if args.max_shard_size < _MIN_SHARD_BYTES:
        raise ConfigError(
            f"--max-shard-size={args.max_shard_size}: must be at least {_MIN_SHARD_BYTES} bytes; nearest: 1KiB"
        )
    describe(source, "dummy")  # config.json and tokenizer, before anything is written
    _check_destination(source, destination, args.overwrite)
    tensors = tensors_to_write(source, args.dtype)
    _check_room(destination, tensors, args.dtype)
    with _replacing(destination) as folder:
        _copy_texts(source, folder, args.dtype)
        num_files = _write(folder, tensors, args.max_shard_size)
        describe(folder)
    size, of = sum(one.num_bytes for one in tensors), "file" if num_files == 1 else "files"
    print(f"{destination}: {len(tensors)} tensors, {size / 2**20:,.1f} MiB in {num_files} {of}")
    print("every tensor is there, none is left over, all have their shapes")
    return 0


def tensors_to_write(source: Path, dtype: str) -> list[TensorToWrite]:
    """What the model of a folder reads, in its order; a tied head and other copies that nobody needs are left out.

    Raises:
        ModelFormatError: the folder is not right: every missing, unused and mis-shaped tensor.
    """
    import torch

    from runtime.basemodel import model_class_of, needed_tensors
    from runtime.loader import TensorToWrite, open_weights

    weights = open_weights(source, optional_prefix=model_class_of(source).optional_prefix)
    cpu = torch.device("cpu")

    def to_write(name: str, held: torch.dtype, shape: tuple[int, ...]) -> TensorToWrite:
        wanted = getattr(torch, dtype) if dtype != _KEEP and held.is_floating_point else held
        whole = tuple(slice(0, size) for size in shape)
        return TensorToWrite(
            name, wanted, shape, lambda: _cast(name, weights.read(name, whole, dtype=held, device=cpu), wanted)
        )

    return [to_write(name, info.dtype, info.shape) for name, info in needed_tensors(source, weights).items()]


def _cast(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in `dtype`; ModelFormatError where a finite one would become infinite."""
    cast = values.to(dtype)
    if dtype is not values.dtype and _has_infinite(cast) and not _has_infinite(values):
        import torch

        raise ModelFormatError(
            f"{name}: its largest value is {values.abs().max().item():.4g}, and {str(dtype).removeprefix('torch.')} "
            f"ends at {torch.finfo(dtype).max:.4g}",
            hint="--dtype bfloat16 has the range of float32",
        )
    return cast


def _has_infinite(values: Tensor) -> bool:
    return values.numel() > 0 and any(bool(extreme.isinf()) for extreme in values.aminmax())  # makes no copy


def _check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    at, of = destination.resolve(), source.resolve()
    if at == of or at in of.parents or of in at.parents:
        raise ConfigError(f"DST={destination} and SRC={source} must be folders beside each other, neither in the other")
    if destination.exists() and not destination.is_dir():
        raise ConfigError(f"DST={destination} is a file; a folder is made there")
    if not at.parent.is_dir():
        raise ConfigError(f"DST={destination}: there is no folder {at.parent} to make it in", hint="mkdir -p makes it")
    found = sorted(path.name for path in destination.iterdir()) if destination.exists() else []
    if not found:
        return
    if not overwrite:
        raise ConfigError(f"DST={destination} is not empty: it holds {found[0]}", hint="--overwrite replaces it")
    strange = [name for name in found if not _is_of_a_model(destination / name)]
    if strange:
        raise ConfigError(
            f"DST={destination} holds {strange[0]}, which is no file of a model; --overwrite replaces models only",
            hint="give another folder, or remove it yourself",
        )


def _is_of_a_model(path: Path) -> bool:
    """Of what `runtime convert` makes: everything else in DST is somebody's and stays."""
    return path.is_file() and (path.suffix == ".safetensors" or _is_text(path.name))


def _is_text(name: str) -> bool:
    return Path(name).suffix in _TEXT_SUFFIXES or name.startswith(_TEXT_NAMES)


def _check_room(destination: Path, tensors: Sequence[TensorToWrite], dtype: str) -> None:
    parent = destination.resolve().parent
    needed, free = sum(one.num_bytes for one in tensors), shutil.disk_usage(parent).free
    if needed <= free:
        return
    halved = sum(one.num_bytes * 2 // one.dtype.itemsize for one in tensors)
    smaller = f"--dtype bfloat16 takes {halved / 2**30:.2f} GiB" if halved <= free else "give a DST on another disk"
    raise ConfigError(
        f"DST={destination} takes {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free there", hint=smaller
    )


@contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """A folder that becomes the destination once all has gone well; until then the destination is as it was."""
    final = destination.resolve()
    made, old = (final.with_name(f".{final.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    made.mkdir()
    try:
        yield made
        _swap(made, final, old)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, final: Path, old: Path) -> None:
    if final.exists():
        final.rename(old)
    try:
        made.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _copy_texts(source: Path, folder: Path, dtype: str) -> None:
    from runtime.loader.model_folder import file_in_folder, read_json

    for path in sorted(source.iterdir()):
        if path.is_file() and _is_text(path.name) and not path.name.endswith(_INDEX_SUFFIX):
            shutil.copyfile(file_in_folder(source, path.name), folder / path.name)
    if dtype == _KEEP:
        return
    config = read_json(folder, "config.json")
    for name in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
        config[name] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write(folder: Path, tensors: Sequence[TensorToWrite], max_shard_bytes: int) -> int:
    from runtime.loader import write_safetensors

    progress = _Progress(tensors)
    try:
        return write_safetensors(folder, tensors, max_shard_bytes, progress.advance)
    finally:
        progress.end()


class _Progress:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, tensors: Sequence[TensorToWrite]) -> None:
        self._is_shown = sys.stderr.isatty()
        self._total = sum(one.num_bytes for one in tensors)
        self._done = 0

    def advance(self, tensor: TensorToWrite) -> None:
        self._done += tensor.num_bytes
        if self._is_shown:
            share = 100 * self._done // max(self._total, 1)
            done, total = (f"{size / 2**30:.2f}" for size in (self._done, self._total))
            print(f"\r\x1b[K{share:3} %  {done} of {total} GiB  {tensor.name}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
