"""A file of `torch.save`, read without unpickling it.

The file is a zip of raw storages beside data.pkl, which says how tensors lie in them. data.pkl is a program for the
pickle machine; here its opcodes are listed, never run by that machine: the few that describe plain tensors are
interpreted below, and whatever else the program names is refused, not imported.
https://docs.pytorch.org/docs/main/notes/serialization.html describes the format.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import ModelFormatError, shorten
from .safetensors_header import MAX_DIMENSIONS, TensorInfo
from .torch_opcodes import opcodes

MAX_DESCRIPTION_BYTES = 64 << 20
_LOCAL_HEADER_BYTES = 30  # of an entry of a zip, before its name and its extra field
_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor of such a file: `start` and `end` are bytes of the file, `stride` is in elements from `start`."""

    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Its values; only its bytes are read."""
        if self.start == self.end:
            return torch.empty(self.shape, dtype=self.dtype)
        data = bytearray(self.end - self.start)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if file.readinto(data) != len(data):
                raise ModelFormatError(f"{self.path.name} became shorter while it was read")
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class _Name:
    """What the program would import: "module attribute"."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    start: int
    count: int


class _Refused(Exception):
    """The program does what a description of tensors has no need of."""


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; no value is read.

    Raises:
        ModelFormatError: it is no such file, is damaged, or holds anything but tensors by name.
    """
    try:
        entries = _entries(path)
        start, end = entries.pop("data.pkl")
        if end - start > MAX_DESCRIPTION_BYTES:
            raise _Refused(f"its data.pkl has {end - start} bytes, the limit is {MAX_DESCRIPTION_BYTES}")
        with path.open("rb") as file:
            file.seek(start)
            found = _Interpreter(path, entries).run(file.read(end - start))
        return _by_name(found)
    except _Refused as refused:
        raise ModelFormatError(f"{path.name}: {refused}") from None
    except (zipfile.BadZipFile, ArithmeticError, LookupError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelFormatError(
            f"{path.name} is not a file of tensors by torch.save ({shorten(str(error))}): damaged, truncated, or "
            "written by torch 1.5 or older",
            hint="download it again, or save it again with a newer torch",
        ) from None


def _entries(path: Path) -> dict[str, tuple[int, int]]:
    """First byte and end of every entry, by its name without the folder that all lie in."""
    found = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"its entry {shorten(info.filename)} is compressed, which torch.save never does")
            found[info.filename.partition("/")[2]] = _range_of(info, file, path.stat().st_size)
        start, end = found.get("byteorder", (0, 0))  # torch before 2.1 wrote none
        file.seek(start)
        if end > start and file.read(min(end - start, 8)) != b"little":
            raise _Refused("its numbers are not little-endian")
    return found


def _range_of(info: zipfile.ZipInfo, file: BinaryIO, file_bytes: int) -> tuple[int, int]:
    """Where the data of an entry lie: behind its local header, whose name and extra field have lengths of their own."""
    if not 0 <= info.header_offset < file_bytes:
        raise ValueError(f"{info.filename} begins outside the file")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_len, extra_len = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    start = info.header_offset + _LOCAL_HEADER_BYTES + name_len + extra_len
    if start + info.file_size > file_bytes:
        raise ValueError(f"{info.filename} ends behind the file")
    return start, start + info.file_size


def _by_name(found: object) -> dict[str, StoredTensor]:
    if not isinstance(found, dict) or not found:
        raise _Refused("it does not hold tensors by name")
    odd = next((name for name, value in found.items() if not isinstance(value, StoredTensor)), None)
    if odd is not None:
        raise _Refused(f"its {shorten(odd)} is not a tensor; a checkpoint of weights alone is needed")
    return {str(name): tensor for name, tensor in found.items()}


class _Interpreter:
    """The part of the pickle machine that torch.save uses for tensors: a stack, marks in it, and a memo."""

    def __init__(self, path: Path, entries: dict[str, tuple[int, int]]) -> None:
        self._path, self._entries = path, entries
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> object:
        for name, argument in opcodes(program):
            if name != "STOP":
                self._step(name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(self._pop_from(len(self._stack) - _TUPLES[name])))
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name == "BUILD":  # attributes of the dict below, such as the versions of modules: of no use here
            self._stack.pop()
        elif name != "PROTO":
            raise _Refused(f"its data.pkl has {name}, which no description of tensors needs")

    def _pop_from(self, index: int) -> list[Any]:
        if index < 0:
            raise ValueError("its stack is empty")
        items = self._stack[index:]
        del self._stack[index:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise TypeError("items of what is no dict")
        if not all(isinstance(name, str) for name in items[::2]):  # the hash of a nested tuple can take for ever
            raise _Refused("a key of its data.pkl is no name")
        self._stack[-1].update(zip(items[::2], items[1::2]))

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError("items of what is no list")
        self._stack[-1].extend(items)

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _storage(self, _: object) -> None:
        """("storage", its type, the name of its entry, a device, its number of elements) to a storage."""
        kind, storage_type, key, _device, count = self._stack.pop()
        if kind != "storage" or not isinstance(storage_type, _Name) or storage_type.text not in _STORAGES:
            raise _Refused(f"its tensors have a storage of {_text(storage_type)}, which is not supported")
        if not isinstance(key, str):
            raise TypeError("a storage without a name")
        dtype, (start, end) = _STORAGES[storage_type.text], self._entries[f"data/{key}"]
        if end - start != count * dtype.itemsize:
            raise _Refused(f"its data/{key} has {end - start} bytes, {count} elements of {dtype} were announced")
        self._stack.append(_Storage(dtype, start, count))

    def _call(self, _: object) -> None:
        function, arguments = self._pop_from(len(self._stack) - 2)
        if function == _Name("collections OrderedDict") and arguments == ():
            self._stack.append({})
        elif function == _Name("torch._utils _rebuild_tensor_v2"):
            self._stack.append(self._tensor(*arguments[:4]))
        elif function == _Name("torch._utils _rebuild_parameter"):
            self._stack.append(arguments[0])
        else:
            raise _Refused(f"it calls {_text(function)}, which makes no tensor and could run code; nothing was run")

    def _tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("a tensor without storage or with too many dimensions")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a size of a tensor is no size")
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride)) if math.prod(shape) else 0
        if max(span, math.prod(shape)) + offset > storage.count:
            raise _Refused(
                f"a tensor of {list(shape)} from element {offset} on passes the {storage.count} of its storage"
            )
        start = storage.start + offset * storage.dtype.itemsize
        return StoredTensor(
            self._path, storage.dtype, tuple(shape), start, start + span * storage.dtype.itemsize, tuple(stride)
        )


def _text(value: object) -> str:
    """A name as Python writes it; of anything else the kind alone, for the text of a nested one can be endless."""
    return value.text.replace(" ", ".") if isinstance(value, _Name) else f"a {type(value).__name__}"


_HANDLERS: dict[str, Callable[[_Interpreter, Any], None]] = {
    "MARK": lambda self, _: self._marks.append(len(self._stack)),
    "GLOBAL": lambda self, name: self._stack.append(_Name(name)),
    "BINPERSID": _Interpreter._storage,
    "REDUCE": _Interpreter._call,
    "TUPLE": lambda self, _: self._stack.append(tuple(self._pop_from(self._marks.pop()))),
    "SETITEM": lambda self, _: self._set_items(self._pop_from(len(self._stack) - 2)),
    "SETITEMS": lambda self, _: self._set_items(self._pop_from(self._marks.pop())),
    "APPEND": lambda self, _: self._append(self._pop_from(len(self._stack) - 1)),
    "APPENDS": lambda self, _: self._append(self._pop_from(self._marks.pop())),
    "BINPUT": _Interpreter._put,
    "LONG_BINPUT": _Interpreter._put,
    "BINGET": lambda self, index: self._stack.append(self._memo[index]),
    "LONG_BINGET": lambda self, index: self._stack.append(self._memo[index]),
}
