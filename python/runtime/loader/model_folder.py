"""Paths of a model: the folder, and which files inside it may be read."""

import difflib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, ModelNotFoundError, shorten

MAX_JSON_BYTES = 64 << 20
_MAX_PATH_LEN = 300  # characters of a path that a message repeats


def check_model_folder(model_dir: str | Path) -> Path:
    """The folder as a Path; ModelNotFoundError, with the nearest existing name, when there is none."""
    folder = Path(model_dir)
    if os.path.isdir(folder):  # never raises, however odd the path
        return folder
    if os.path.exists(folder):
        raise ModelNotFoundError(f"{folder} is a file; a model is a folder with config.json and safetensors")
    nearest = difflib.get_close_matches(folder.name, _folders_in(folder.parent), n=1, cutoff=0.5)
    hint = f"did you mean {folder.parent / nearest[0]}?" if nearest else "a model is a folder on this machine"
    raise ModelNotFoundError(f"no model folder {_path_text(folder)}", hint=hint)


def _folders_in(parent: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except (OSError, ValueError):
        return []


def _path_text(path: Path) -> str:
    """As it was given, where one line can hold it."""
    text = str(path)
    return text if text.isprintable() and len(text) <= _MAX_PATH_LEN else shorten(text)


def _allowed_root(folder: Path) -> Path:
    """The folder; in Hugging Face's cache, whose snapshots link into `blobs` beside them, the folder of both."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        return root.parent.parent
    return root


def file_in_folder(folder: Path, name: str) -> Path:
    """A file of the model; ModelFormatError when the name or a link leads out of the folder, or it does not exist."""
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise ModelFormatError(f"{name!r} is not the name of a file in the model folder")
    if not path.resolve().is_relative_to(_allowed_root(folder)):
        raise ModelFormatError(f"{name} is a link that leaves the model folder", hint="copy the file into the folder")
    if not path.is_file():
        raise ModelFormatError(f"{folder} has no {name}")
    if not os.access(path, os.R_OK):
        raise ModelFormatError(f"{name} of {folder} may not be read", hint="change its permissions")
    return path


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys; ModelFormatError that names `where`."""
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates)
        if b"\\u" in text:  # half of a surrogate pair is no text
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{where} is not valid JSON: {str(error) or 'too deeply nested'}") from None
    if not isinstance(parsed, dict):
        raise ModelFormatError(f"{where} is not a JSON object")
    return parsed


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder; ModelFormatError for a file that is none, is too large or lies elsewhere."""
    path = file_in_folder(folder, name)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{name} has {path.stat().st_size} bytes; the limit is {MAX_JSON_BYTES}")
    return parse_json_object(path.read_bytes(), name)
