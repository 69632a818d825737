"""Token sequences that an output must not contain: what `SamplingParams.bad_words` become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from runtime.tokenizer import Tokenizer


@dataclass
class _Node:
    """A tail of the output. `last_ids` would complete a word behind it; `before` leads to longer tails."""

    last_ids: list[int] = field(default_factory=list)
    before: dict[int, _Node] = field(default_factory=dict)


class BadWords:
    """A trie of the sequences but for their last tokens, read backwards: finding what is banned next takes as many
    steps as the longest sequence has tokens, however many there are. Not changed once made.

    Args:
        sequences: token ids, none empty.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._root = _Node()
        self.max_tail_len = 0  # tokens of an output that matter
        for *tail, last_id in _without_implied(sequences):
            self.max_tail_len = max(self.max_tail_len, len(tail))
            node = self._root
            for token_id in reversed(tail):
                node = node.before.setdefault(token_id, _Node())
            node.last_ids.append(last_id)

    @classmethod
    def of(cls, words: Sequence[str], tokenizer: Tokenizer) -> BadWords:
        """Each word as it begins a text, and behind a space.

        Raises:
            InvalidRequestError: a word without tokens.
        """
        sequences = []
        for word in words:
            own = tokenizer.encode(word, add_special_tokens=False)
            if not own:
                raise InvalidRequestError("bad_words", word, "of at least one token")
            sequences += [own, tokenizer.encode(f" {word}", add_special_tokens=False)]
        return cls(sequences)

    @property
    def always(self) -> list[int]:
        """Ids that are banned whatever the output is: words of one token."""
        return self._root.last_ids

    def after(self, output: Sequence[int]) -> list[int]:
        """Ids beside `always` that may not follow `output`, whose last `max_tail_len` tokens are enough."""
        node, found = self._root, list[int]()
        for token_id in reversed(output):
            if (longer := node.before.get(token_id)) is None:
                break
            node = longer
            found += node.last_ids
        return found


def _without_implied(sequences: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Each once, and none that ends with another one: a space of its own before a word bans nothing more."""
    found = dict.fromkeys(map(tuple, sequences))
    return [one for one in found if not any(one[i:] in found for i in range(1, len(one)))]
