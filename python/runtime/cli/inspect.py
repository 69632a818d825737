"""Describe a model folder, and check it against the code that would run it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_model_argument
from runtime.config import BUILTIN_MODEL

if TYPE_CHECKING:
    from runtime.basemodel import TpPartBaseModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--tensors", action="store_true", help="list every tensor: shape, dtype, file")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.model) if args.model else BUILTIN_MODEL
    found = describe(folder)
    if args.tensors:
        found["tensors"] = _tensors(folder)
    if args.json:
        print(json.dumps(found))
        return 0
    tensors = found.pop("tensors", {})
    for name, value in found.items():
        print(f"{name:22} {_text(value)}")
    for name, (shape, dtype, file) in tensors.items():
        print(f"{name}  {shape}  {dtype}  {file}")
    print("every tensor is there, none is left over, all have their shapes")
    return 0


def describe(folder: Path) -> dict[str, Any]:
    """What a folder holds; no weight is read.

    Raises:
        ModelNotFoundError, ModelFormatError: the latter with everything that is wrong.
    """
    from runtime.basemodel import model_class_of
    from runtime.basemodel.registry import tp_sizes

    # on the meta device a model is checked and counted, never loaded
    model = model_class_of(folder)(0, 1, folder, 16, device="meta")
    return {"folder": str(folder), **_model(model), **_text_side(folder, model), "tp_sizes": tp_sizes(folder)}


def _model(model: TpPartBaseModel) -> dict[str, Any]:
    config = model.config
    num_bytes = model.memory.weight_bytes
    return {
        "model_type": config["model_type"],
        "parameters": num_bytes // model.dtype.itemsize,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weight_bytes": num_bytes,
        "kv_bytes_per_token": model.memory.kv_bytes_per_token,
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "vocab_size": config["vocab_size"],
        "max_model_len": model.max_model_len,
    }


def _text_side(folder: Path, model: TpPartBaseModel) -> dict[str, Any]:
    from runtime.tokenizer import Tokenizer, read_eos_token_ids

    eos = read_eos_token_ids(folder)
    if not (folder / "tokenizer.json").exists():
        return {"tokenizer": None, "eos_token_ids": eos}
    tokenizer = Tokenizer(folder)
    tokenizer.check_vocab_size(model.vocab_size)
    return {
        "tokenizer": tokenizer.vocab_size,
        "chat_template": tokenizer.chat_template is not None,
        "eos_token_ids": eos,
    }


def _tensors(folder: Path) -> dict[str, tuple[list[int], str, str]]:
    from runtime.loader import Checkpoint

    return {
        name: (list(info.shape), str(info.dtype).removeprefix("torch."), info.path.name)
        for name, info in sorted(Checkpoint(folder).tensors.items())
    }


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
