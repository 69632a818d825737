"""Token ids to text, one token at a time: UTF-8 across token borders, stop strings across token borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these ids, U+FFFD for bytes that are no character."""


# Tokens decoded again with each new one. A decoder may look back (a leading space, a run of byte tokens), so the new
# text is what `decode(window)` has beyond what was shown of it.
_CONTEXT = 6
_MAX_WINDOW = 24
_FORCED_WINDOW = 96
# a character has at most four bytes, so more held tokens than these hold more than one unfinished character
_MAX_HELD = 8
_MAX_UNFINISHED = 3


class IncrementalDetokenizer:
    """Text of an output as its tokens arrive. Ends of the text that may be half a character are held back.

    Args:
        prompt_token_ids: what the output continues; only their end is read.
    """

    def __init__(self, decoder: Decoder, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._window = self._end_of(prompt_token_ids)
        self._shown = self._decode(self._window)  # what of decode(window) is out
        self._held = 0  # tokens since the last character came out

    def push(self, token_id: int) -> str:
        """The text that this token completes, often one word, sometimes nothing."""
        self._window.append(token_id)
        self._held += 1
        text = self._decode(self._window)
        if text.endswith("\ufffd"):
            return self._release_all_but_unfinished(text)
        delta = self._show(text)
        if delta:
            self._held = 0
        if len(self._window) > _MAX_WINDOW:
            self._trim(text)
        return delta

    def flush(self) -> str:
        """What was held back, at the end of the output."""
        return self._show(self._decode(self._window))

    def _end_of(self, token_ids: Sequence[int]) -> list[int]:
        """The last tokens, a few more where these would begin inside a character: that shows as U+FFFD."""
        windows = [list(token_ids[-size:]) for size in range(_CONTEXT, _CONTEXT + _MAX_UNFINISHED + 1)]
        if "\ufffd" not in self._decode(windows[0]):
            return windows[0]
        return min(windows, key=lambda window: self._decode(window).count("\ufffd"))

    def _show(self, text: str) -> str:
        delta = text[len(self._shown) :]
        self._shown = text
        return delta

    def _release_all_but_unfinished(self, text: str) -> str:
        if len(self._window) > _FORCED_WINDOW:
            self._trim(text)
            text = self._decode(self._window)
        if self._held <= _MAX_HELD:
            return ""
        settled = self._decode(self._window[:-_MAX_UNFINISHED])
        # otherwise it ends inside a character, or what is unfinished spoils what was already shown
        if not (text.startswith(settled) and settled.startswith(self._shown)):
            return ""
        return self._show(settled)

    def _trim(self, text: str) -> None:
        """Forgets all but the last tokens, where that leaves the text as it is."""
        window = self._end_of(self._window)
        tail = self._decode(window)
        if text.endswith(tail) or len(self._window) > _FORCED_WINDOW:
            unshown = max(len(text) - len(self._shown), 0)
            self._window = window
            self._shown = tail[: max(len(tail) - unshown, 0)]

    def _decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=self._skip) if token_ids else ""


class StopStrings:
    """Finds the first stop string to be completed, wherever the borders of the pieces of text are.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, delta: str) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that was completed, if any."""
        text = self._held + delta
        found = self._first_match(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[: start + len(stop) if self._include else start], stop
        keep = self._num_undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _num_undecided(self, text: str) -> int:
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if stop.startswith(text[len(text) - size :]):
                    longest = size
                    break
        return longest


class TextStream:
    """The visible text of one output: detokeniser and stop strings together.

    Args:
        min_tokens: stop strings that are complete before that many tokens do not count.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt_token_ids: Sequence[int],
        *,
        stops: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(decoder, prompt_token_ids, skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stops, include=include_stop) if stops else None
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.text = ""

    @property
    def has_stops(self) -> bool:
        """Whether its text can end the output."""
        return self._stops is not None

    def push(self, token_id: int) -> str | None:
        """Takes one token; returns the stop string that it completes."""
        self._num_tokens += 1
        return self._show(self._detokenizer.push(token_id))

    def finish(self) -> str | None:
        """No more tokens: shows what was held back; returns the stop string that this completes."""
        stop = self._show(self._detokenizer.flush())
        if self._stops is not None and stop is None:
            self.text += self._stops.flush()
        return stop

    def _show(self, delta: str) -> str | None:
        if self._stops is None or self._num_tokens <= self._min_tokens:
            self.text += delta
            return None
        shown, stop = self._stops.push(delta)
        self.text += shown
        return stop
