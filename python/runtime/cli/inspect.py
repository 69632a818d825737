"""Describe a model folder, check it against the code that would run it, and plan its memory."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import add_engine_arguments, add_model_argument, engine_arguments
from runtime.config import BUILTIN_MODEL

if TYPE_CHECKING:
    from runtime.basemodel import TpPartBaseModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--tensors", action="store_true", help="list every tensor: shape, dtype, file")
    parser.add_argument("--plan", action="store_true", help="memory on a device, and what fits into it")
    parser.add_argument("--device-name", metavar="NAME", help="plan for this CUDA device, such as 'NVIDIA H200'")
    parser.add_argument(
        "--device-memory", type=num_bytes, metavar="BYTES", help="plan for so much memory; 80GiB is understood too"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    folder = Path(args.model) if args.model else BUILTIN_MODEL
    found = describe(folder, args.load_format)
    if args.tensors:
        found["tensors"] = _tensors(folder)
    if args.plan:
        found["plan"] = _plan(args)
    if args.json:
        print(json.dumps(found))
        return 0
    tensors, plan = found.pop("tensors", {}), found.pop("plan", {})
    for name, value in found.items():
        print(f"{name:22} {_text(value)}")
    for name, (shape, dtype, file) in tensors.items():
        print(f"{name}  {shape}  {dtype}  {file}")
    if args.load_format != "dummy":
        print("every tensor is there, none is left over, all have their shapes")
    if plan:
        print(*plan_lines(plan), sep="\n")
    return 0


def num_bytes(text: str) -> int:
    """An argument in bytes: "150000000000", "139.8GiB", "512 MiB".

    Raises:
        ValueError: it is neither.
    """
    digits = text.rstrip("KMGTiB ")
    unit = text[len(digits) :].strip().removesuffix("B").removesuffix("i")
    size = float(digits) * 1024 ** (["", *"KMGT"].index(unit))
    if not math.isfinite(size):
        raise ValueError(text)
    return int(size)


def describe(folder: Path, load_format: str = "auto") -> dict[str, Any]:
    """What a folder holds; no weight is read. With load_format "dummy", what its config.json describes.

    Raises:
        ModelNotFoundError, ModelFormatError: the latter with everything that is wrong.
    """
    from runtime.basemodel import model_class_of
    from runtime.basemodel.registry import tp_sizes

    # on the meta device a model is checked and counted, never loaded
    model = model_class_of(folder)(0, 1, folder, 16, device="meta", load_format=load_format)
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


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from runtime.llm import LLM

    plan = LLM.plan(
        args.model, device_name=args.device_name, device_memory_bytes=args.device_memory, **engine_arguments(args)
    )
    return plan.as_dict()


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """A table of bytes, in MiB, and what fits."""
    parts = {f"  {name}": size for name, size in plan["parts"].items()}
    sizes = {"weights": plan["weights"], "kv_cache": plan["kv_cache"], "workspace": plan["workspace"], **parts}
    sizes |= {name: plan[name] for name in ("graphs", "context", "total", "device_bytes")}
    lines = [f"memory on {plan['device']}:", *(f"{name:22} {size / 2**20:12,.1f} MiB" for name, size in sizes.items())]
    counts = ("kv_bytes_per_token", "kv_blocks", "block_size", "max_model_len", "max_sequences")
    return lines + [f"{name:22} {_text(plan[name])}" for name in counts]


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
