"""Tool calls in an answer, found while it arrives: text, and calls with their arguments in pieces."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from runtime.server.call_reader import SPACE, CallReader


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls: each a JSON object with a name and arguments.

    Args:
        opening: stands before a call.
        closing: stands behind one, and may be missing.
        arguments: the key of the arguments.
        is_bare: an answer may also begin with a call without `opening`, and other calls follow behind `closing`.
    """

    name: str
    opening: str
    closing: str
    arguments: str
    is_bare: bool

    @property
    def beginning(self) -> str:
        """What an answer that is a call begins with, before the JSON."""
        return "" if self.is_bare else f"{self.opening}\n"


# Qwen 2.5 and 3, Hermes, and others that were taught by their data
HERMES = ToolFormat("hermes", opening="<tool_call>", closing="</tool_call>", arguments="arguments", is_bare=False)
# Llama 3.1 to 3.3
LLAMA3_JSON = ToolFormat("llama3_json", opening="<|python_tag|>", closing=";", arguments="parameters", is_bare=True)
FORMATS = {found.name: found for found in (HERMES, LLAMA3_JSON)}


@dataclass(frozen=True, slots=True)
class Text:
    """Of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """Call `index`, from 0, is one of this function."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON of call `index`, the last one that began."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """No more of call `index`. `raw` is all of its text where the answer broke off within it, or went wrong."""

    index: int
    raw: str | None


Part = Text | CallBegins | Arguments | CallEnds


class ToolParser(Protocol):
    """Reads one answer. Where the pieces of its text end makes no difference to what the parts add up to."""

    def feed(self, text: str) -> list[Part]:
        """What these characters decide."""

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""


class JsonCallParser:
    """`ToolParser` of a ToolFormat; in time linear in the answer, whatever it holds.

    What might be the beginning of a call is held back until that is decided, and is text if it is none: a function
    that there is not, or no such JSON. Space around calls belongs to nobody.

    Args:
        names: the functions there are.
        has_begun: the answer goes on behind the format's `beginning`.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, has_begun: bool = False) -> None:
        self._format = format
        self._names = names
        self._parts: list[Part] = []
        is_behind = has_begun and not format.is_bare
        self._state: Callable[[str, int], int] = self._behind_opening if is_behind else self._at_start
        self._undecided = ""  # shorter than an opening or a closing
        self._space: list[str] = []  # before what comes next
        self._raw: list[str] = []  # of the call that is being read
        self._call = CallReader(names)
        self._num_calls = 0
        self._has_begun = False

    def feed(self, text: str) -> list[Part]:
        text, self._undecided = self._undecided + text, ""
        at = 0
        while at < len(text):
            before = at, self._state
            at = self._state(text, at)
            if (at, self._state) == before:
                self._undecided = text[at:]
                break
        return self._take()

    def finish(self) -> list[Part]:
        if self._state == self._in_call:
            self._end_call()
        elif self._state == self._behind_opening:
            self._give_up()
        self._say(self._undecided)
        self._undecided = ""
        if not self._num_calls:
            self._parts.append(Text("".join(self._space)))
        return self._take()

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return [part for part in parts if not isinstance(part, (Text, Arguments)) or part.text]

    # ---- where in the answer: each takes text and place, and says how far it came --------------------

    def _at_start(self, text: str, at: int) -> int:
        """Of the answer, or behind a call of a bare format."""
        at = self._skip_space(text, at, self._space)
        if at < len(text):
            is_call = self._format.is_bare and text[at] == "{"
            self._state = self._begin_call([]) if is_call else self._in_text
        return at

    def _in_text(self, text: str, at: int) -> int:
        opening = self._format.opening
        start = text.find(opening, at)
        if start >= 0:
            self._say(text[at:start])
            self._raw, self._state = [opening], self._behind_opening
            return start + len(opening)
        end = len(text) - _overlap(text, at, opening)
        self._say(text[at:end])
        return end

    def _behind_opening(self, text: str, at: int) -> int:
        at = self._skip_space(text, at, self._raw)
        if at < len(text):
            if text[at] == "{":
                self._state = self._begin_call(self._raw)
            else:
                self._give_up()
        return at

    def _in_call(self, text: str, at: int) -> int:
        call = self._call
        end = call.feed(text, at)
        self._raw.append(text[at:end])
        self._show_call()
        if call.is_done or call.is_broken:
            self._end_call()
        return end

    def _behind_call(self, text: str, at: int) -> int:
        at, closing = self._skip_space(text, at, self._space), self._format.closing
        if text.startswith(closing, at):
            self._space.clear()
            self._state = self._at_start
            return at + len(closing)
        if len(text) - at >= len(closing) or not closing.startswith(text[at:]):
            self._state = self._at_start
        return at

    # ---- what is decided --------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Text, but for the space at its end."""
        body = text.rstrip(" \t\n\r")
        if body:
            self._parts.append(Text("".join(self._space) + body))
            self._space = []
        self._space.append(text[len(body) :])

    def _begin_call(self, raw: list[str]) -> Callable[[str, int], int]:
        self._raw, self._call, self._has_begun = raw, CallReader(self._names), False
        return self._in_call

    def _show_call(self) -> None:
        """What is known of the call now."""
        if not self._call.is_call:
            return
        if not self._has_begun:
            self._has_begun = True
            assert self._call.name is not None
            self._parts.append(CallBegins(self._num_calls, self._call.name))
        self._parts.append(Arguments(self._num_calls, self._call.take()))

    def _end_call(self) -> None:
        if not self._has_begun:
            self._give_up()
            return
        is_whole = self._call.is_whole
        raw = None if is_whole else "".join([*self._space, *self._raw])
        self._parts.append(CallEnds(self._num_calls, raw))
        self._num_calls += 1
        self._space, self._raw = [], []
        self._state = self._behind_call if is_whole else self._in_text

    def _give_up(self) -> None:
        """It is no call, but text."""
        self._say("".join(self._raw))
        self._raw, self._state = [], self._in_text

    def _skip_space(self, text: str, at: int, into: list[str]) -> int:
        end = SPACE.match(text, at).end()  # type: ignore[union-attr]
        into.append(text[at:end])
        return end


def _overlap(text: str, at: int, marker: str) -> int:
    """How many characters at the end of text[at:] may be the beginning of `marker`."""
    sizes = range(min(len(marker) - 1, len(text) - at), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size], at)), 0)
