"""The opcodes that torch.save writes for tensors, told apart; nothing here runs them.

https://peps.python.org/pep-0307/ describes the format, of which torch.save writes protocol 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

# by their byte: of those without an argument, and a few that are refused by name
_BARE = {
    b".": "STOP", b"(": "MARK", b"N": "NONE", b"\x88": "NEWTRUE", b"\x89": "NEWFALSE", b")": "EMPTY_TUPLE",
    b"]": "EMPTY_LIST", b"}": "EMPTY_DICT", b"\x85": "TUPLE1", b"\x86": "TUPLE2", b"\x87": "TUPLE3", b"t": "TUPLE",
    b"Q": "BINPERSID", b"R": "REDUCE", b"s": "SETITEM", b"u": "SETITEMS", b"a": "APPEND", b"e": "APPENDS",
    b"b": "BUILD", b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX", b"\x93": "STACK_GLOBAL", b"0": "POP", b"2": "DUP",
}  # fmt: skip
# with a number of this form
_NUMBERS = {
    b"\x80": ("PROTO", "<B"), b"K": ("BININT1", "<B"), b"M": ("BININT2", "<H"), b"J": ("BININT", "<i"),
    b"G": ("BINFLOAT", ">d"), b"q": ("BINPUT", "<B"), b"r": ("LONG_BINPUT", "<I"), b"h": ("BINGET", "<B"),
    b"j": ("LONG_BINGET", "<I"),
}  # fmt: skip


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


# with so many bytes as a number of this form before them says
_COUNTED: dict[bytes, tuple[str, str, Callable[[bytes], Any]]] = {
    b"X": ("BINUNICODE", "<I", _utf8),
    b"\x8c": ("SHORT_BINUNICODE", "<B", _utf8),
    b"\x8a": ("LONG1", "<B", _integer),
}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("it ends within an opcode")
        self._at += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise ValueError("it ends within a line")
        return self.take(end + 1 - self._at)[:-1].decode()


def opcodes(program: bytes) -> Iterator[tuple[str, Any]]:
    """Name and argument of each opcode, up to and with STOP; of an unknown one its byte, as a name.

    The argument of GLOBAL is "module attribute", None is that of an opcode without one.

    Raises:
        ValueError: the program is cut off.
    """
    reader = _Reader(program)
    while True:
        name, argument = _next(reader)
        yield name, argument
        if name == "STOP":
            return


def _next(reader: _Reader) -> tuple[str, Any]:
    byte = reader.take(1)
    if byte == b"c":
        return "GLOBAL", f"{reader.line()} {reader.line()}"
    if byte in _NUMBERS:
        name, form = _NUMBERS[byte]
        return name, reader.number(form)
    if byte in _COUNTED:
        name, form, made_of = _COUNTED[byte]
        return name, made_of(reader.take(reader.number(form)))
    return _BARE.get(byte, f"opcode 0x{byte.hex()}"), None
