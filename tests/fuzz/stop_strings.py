"""Stop strings in a text that comes in pieces: the first to be complete ends it, whatever the borders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from runtime.engine.detokenizer import StopStrings

ALPHABETS = ("ab", "ab\n", "aé€😀", "".join(map(chr, range(32, 127))))


def make(folder: Path) -> Callable[[Random], None]:
    return case


def case(rng: Random) -> None:
    letters = rng.choice(ALPHABETS)
    text = "".join(rng.choices(letters, k=rng.randrange(40)))
    stops = [_stop(rng, letters, text) for _ in range(rng.randint(1, 4))]
    include = rng.random() < 0.5
    shown, found = _feed(StopStrings(stops, include=include), text, rng)
    match = _first_end(text, stops)
    if match is None:
        assert (found, shown) == (None, text), (text, stops)
    else:
        start, stop = match
        assert (found, shown) == (stop, text[: start + len(stop) * include]), (text, stops)


def _stop(rng: Random, letters: str, text: str) -> str:
    """Now and then one that stands in the text."""
    if len(text) > 2 and rng.random() < 0.5:
        start = rng.randrange(len(text) - 1)
        return text[start : start + rng.randint(1, 9)]
    return "".join(rng.choices(letters, k=rng.randint(1, 5)))


def _feed(checker: StopStrings, text: str, rng: Random) -> tuple[str, str | None]:
    shown, start = "", 0
    while start < len(text):
        end = start + rng.randint(1, 6)
        delta, found = checker.push(text[start:end])
        shown, start = shown + delta, end
        if found is not None:
            return shown, found
    return shown + checker.flush(), None


def _first_end(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(start, stop) of the one that is complete first; of two with the same end the longer one."""
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(ends)[1:] if ends else None
