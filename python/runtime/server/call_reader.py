"""The JSON object of one tool call, read while it arrives: whose name it has, and its arguments as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import msgspec

MAX_DEPTH = 64  # brackets within the arguments
MAX_KEY_CHARS = 64
SPACE = re.compile(r"[ \t\n\r]*")

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("type", "id")  # that some models add
_CLOSERS = {"{": "}", "[": "]"}
_MARK = re.compile(r'["{}\[\]]')
_END_OF_PART = re.compile(r'["\\]')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")


class ValueReader:
    """Finds the end of an object, an array or a string, from its first character on; in linear time.

    Brackets and strings are followed, and nothing else of JSON's rules.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._closers: list[str] = []
        self._is_string = False
        self._is_escaped = False

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; where it stopped: behind the value, at what broke it, or at the end of the text."""
        while at < len(text) and not (self.is_done or self.is_broken):
            at = self._read_string(text, at) if self._is_string else self._read_brackets(text, at)
        return at

    def _read_string(self, text: str, at: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return at + 1
        found = _END_OF_PART.search(text, at)
        if found is None:
            return len(text)
        self._is_escaped = found[0] == "\\"
        self._is_string = self._is_escaped
        self.is_done = not self._is_string and not self._closers
        return found.end()

    def _read_brackets(self, text: str, at: int) -> int:
        found = _MARK.search(text, at)
        if found is None:
            return len(text)
        mark = found[0]
        if mark == '"':
            self._is_string = True
        elif mark in _CLOSERS:
            self._closers.append(_CLOSERS[mark])
            self.is_broken = len(self._closers) > MAX_DEPTH
        else:
            self.is_broken = self._closers.pop() != mark
        self.is_done = not (self._closers or self._is_string or self.is_broken)
        return found.start() if self.is_broken else found.end()


class CallReader:
    """Reads `{"name": "f", "arguments": {...}}`, keys in any order, `parameters` for `arguments` too.

    It is a call once the name is known and the arguments have begun, or the object ends without any. What breaks it
    is the first character that fits no such object, the end of a name that is not of `names`, or that of a key which
    stands in no call, so that an answer of another kind is known early.

    Args:
        names: the functions there are.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.is_done = False
        self.is_broken = False
        self.name: str | None = None
        self._names = names
        self._state: Callable[[str, int], int] = self._at_brace
        self._key = ""
        self._word: list[str] = []  # of the key or name that is being read
        self._value = ValueReader()  # of the arguments
        self._other = ValueReader()  # of a key that means nothing here
        self._arguments: list[str] | None = None
        self._num_taken = 0

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; where it stopped: behind the object, at what broke it, or at the end of the text."""
        while at < len(text) and not (self.is_done or self.is_broken):
            at = self._state(text, at)
        return at

    @property
    def is_call(self) -> bool:
        return self.name is not None and (self._arguments is not None or self.is_done)

    @property
    def is_whole(self) -> bool:
        """A call whose arguments are all there, and JSON. What comes after them may be missing."""
        has_ended = self.is_done if self._arguments is None else self._value.is_done
        return self.is_call and has_ended and _is_json(self._all_arguments())

    def take(self) -> str:
        """The arguments' text since the last call."""
        pieces = self._all_arguments()[self._num_taken :]
        self._num_taken += len(pieces)
        return "".join(pieces)

    def _all_arguments(self) -> list[str]:
        return ["{}"] if self._arguments is None and self.is_done else self._arguments or []

    # ---- what is expected next: each takes text and place, and says how far it came ----------------

    def _at_brace(self, text: str, at: int) -> int:
        return self._expect(text, at, {"{": self._at_key})

    def _at_key(self, text: str, at: int) -> int:
        at = self._expect(text, at, {'"': self._in_key, "}": self._at_end})
        self._word.clear()
        return at

    def _at_colon(self, text: str, at: int) -> int:
        return self._expect(text, at, {":": self._at_value})

    def _at_value(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if self._key == "name" and self.name is None:
            self._word.clear()
            return self._expect(text, at, {'"': self._in_name})
        is_first = self._key in _ARGUMENTS and self._arguments is None
        return self._begin_arguments(text, at) if is_first else self._begin_other(text, at)

    def _begin_arguments(self, text: str, at: int) -> int:
        self.is_broken = text[at] != "{"
        if not self.is_broken:
            self._arguments, self._state = [], self._in_arguments
        return at

    def _begin_other(self, text: str, at: int) -> int:
        if text[at] in '"{[':
            self._other, self._state = ValueReader(), self._in_other
        else:
            self._state = self._in_scalar
            self.is_broken = _SCALAR.match(text, at).end() == at  # type: ignore[union-attr]
        return at

    def _in_key(self, text: str, at: int) -> int:
        at, word = self._read_word(text, at)
        if word is not None:
            self._key, self._state = word, self._at_colon
            self.is_broken = not self.is_call and word not in ("name", *_ARGUMENTS, *_OTHERS)
        return at

    def _in_name(self, text: str, at: int) -> int:
        at, word = self._read_word(text, at)
        if word is not None:
            self.is_broken = word not in self._names
            self.name, self._state = None if self.is_broken else word, self._behind_value
        return at

    def _in_arguments(self, text: str, at: int) -> int:
        assert self._arguments is not None
        end = self._value.feed(text, at)
        self._arguments.append(text[at:end])
        self.is_broken = self._value.is_broken
        if self._value.is_done:
            self._state = self._behind_value
        return end

    def _in_other(self, text: str, at: int) -> int:
        at = self._other.feed(text, at)
        self.is_broken = self._other.is_broken
        if self._other.is_done:
            self._state = self._behind_value
        return at

    def _in_scalar(self, text: str, at: int) -> int:
        at = _SCALAR.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text):
            self._state = self._behind_value
        return at

    def _behind_value(self, text: str, at: int) -> int:
        return self._expect(text, at, {",": self._at_key, "}": self._at_end})

    def _at_end(self, text: str, at: int) -> int:
        raise AssertionError("it is done")

    def _expect(self, text: str, at: int, following: dict[str, Callable[[str, int], int]]) -> int:
        """Skips space and takes one of some characters, each of which leads to what follows it."""
        at = _skip_space(text, at)
        if at == len(text):
            return at
        state = following.get(text[at])
        if state is None:
            self.is_broken = True
            return at
        self._state = state
        if state == self._at_end:
            self.is_done, self.is_broken = self.name is not None, self.name is None
        return at + (not self.is_broken)

    def _read_word(self, text: str, at: int) -> tuple[int, str | None]:
        """(how far it came, a short string without escapes once it has ended)."""
        room = MAX_KEY_CHARS - sum(map(len, self._word))
        found = _END_OF_PART.search(text, at)
        end = len(text) if found is None else found.start()
        self._word.append(text[at:end])
        if end - at > room or (found is not None and found[0] == "\\"):
            self.is_broken = True
            return min(end, at + room), None
        return (end, None) if found is None else (end + 1, "".join(self._word))


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


def _is_json(pieces: list[str]) -> bool:
    try:
        msgspec.json.decode("".join(pieces))
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True
