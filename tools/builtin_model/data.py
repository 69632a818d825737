"""Training sequences: questions, completions and chats packed into rows of tokens with their targets."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from random import Random
from typing import TypeAlias

import numpy as np
import questions
import texts
from numpy.typing import NDArray
from tokenizer import (
    ASSISTANT,
    BOS,
    END,
    EOS,
    SPECIAL_TOKENS,
    SYSTEM,
    USER,
    build_tokenizer,
    token_id,
    vocabulary_words,
)

Batch: TypeAlias = tuple[NDArray[np.int16], NDArray[np.int16]]  # tokens, targets
Exchanges: TypeAlias = Iterator[tuple[list[int], list[int]]]  # token ids of prompts and answers
Shapes: TypeAlias = Callable[[int], tuple[int, int]]

IGNORED = -100
_BLOCK = 256
# share of each kind among the exchanges of a row
_SKILL_WEIGHTS = {"add": 4, "subtract": 4, "add3": 4, "subtract3": 4, "reverse": 4, "sort": 5, "python": 2}
_SKILLS, _WEIGHTS = tuple(_SKILL_WEIGHTS), tuple(_SKILL_WEIGHTS.values())
_SEPARATORS = ("\n", "\n", "\n", "\n\n", ", ", "; ", " ")
_SYSTEM_TEXTS = ("You are a helpful assistant.", "You are a calculator.", "Be brief.", "Answer in one line.")
_WORDS = tuple(word.strip() for word in vocabulary_words() if word.strip().isalpha())


def question(rng: Random) -> questions.Question:
    """Draws a question to train on, one that is not held out."""
    skill = rng.choices(_SKILLS, _WEIGHTS)[0]
    if skill not in ("reverse", "sort") or rng.random() >= 0.15:
        return questions.training(skill, rng)
    while True:
        unusual = _on_unusual_string(skill, rng)
        if not unusual.held_out:
            return unusual


def _on_unusual_string(skill: str, rng: Random) -> questions.Question:
    """Words of the vocabulary, which are one token after a space; digits; for `reverse` capitals too."""
    kind = rng.randrange(3)
    if kind == 0:
        text = rng.choice(_WORDS)[: questions.MAX_STRING]
    else:
        text = "".join(rng.choices(questions.LETTERS if kind == 1 else "0123456789", k=rng.randint(1, 8)))
    if skill == "sort":
        return questions.sort(text.lower())
    return questions.reverse(text.capitalize() if rng.random() < 0.5 else text)


def _completion(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.06:
        text = rng.choice(texts.TEXTS)
        start = rng.randint(1, max(1, min(24, len(text) // 2)))
        return text[:start], text[start:]
    if rng.random() < 0.05:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        return f"{a}*{b}=", str(a * b)
    forms = question(rng).completions
    return forms[0 if rng.random() < 0.5 else rng.randrange(len(forms))]


def _loosen(said: str, rng: Random) -> str:
    """The same words as somebody in a hurry types them."""
    if rng.random() < 0.25:
        said = said[0].lower() + said[1:]
    if rng.random() < 0.2:
        said = said.rstrip("?.! ") or said
    return said


def _product(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    form = rng.choice(("What is {}*{}?", "{}*{}", "{} * {}", "{} times {}", "{} x {}"))
    return form.format(a, b), str(a * b)


def _asked(rng: Random) -> tuple[str, str]:
    asked = question(rng)
    return asked.chats[0 if rng.random() < 0.4 else rng.randrange(len(asked.chats))], asked.answer


def _chat(rng: Random) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.12:
        said, answer = texts.small_talk(rng)
    elif draw < 0.2:
        said, answer = texts.unknown(rng)
    else:
        said, answer = _product(rng) if draw < 0.24 else _asked(rng)
    return _loosen(said, rng), answer


@dataclass
class _Row:
    """One row while it is packed; `targets[i]` is what the model learns to say after `tokens[i]`."""

    max_len: int
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.tokens) >= self.max_len

    def add(self, untaught: list[int]) -> None:
        self.tokens += untaught
        self.targets += [IGNORED] * len(untaught)

    def add_exchange(self, prompt: list[int], answer: list[int], end: int) -> None:
        """The last token of the prompt is taught the answer's first, and the answer's last one is taught `end`."""
        self.tokens += prompt + answer
        self.targets += [IGNORED] * (len(prompt) - 1) + answer + [end]


class Packer:
    """Packs exchanges into rows. A prompt is tokenized apart from its answer, as it is when the model is used."""

    def __init__(self) -> None:
        self._tokenizer = build_tokenizer()
        self._id = {text: token_id(self._tokenizer, text) for text in SPECIAL_TOKENS}
        self._separators = [self._encode([text])[0] for text in _SEPARATORS]
        self._system_texts = self._encode(_SYSTEM_TEXTS)

    def batch(self, seed: int, index: int, num_rows: int, row_len: int) -> Batch:
        """The batch with this index: tokens and targets, int16 [num_rows, row_len]; IGNORED where nothing is taught."""
        rng = Random(f"{seed} {index}")
        completions, chats = self._exchanges(_completion, rng), self._exchanges(_chat, rng)
        rows = [self._row(completions, chats, rng, row_len) for _ in range(num_rows)]
        tokens = np.array([row.tokens[:row_len] for row in rows], np.int16)
        return tokens, np.array([row.targets[:row_len] for row in rows], np.int16)

    def _encode(self, many: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in many]

    def _exchanges(self, draw: Callable[[Random], tuple[str, str]], rng: Random) -> Exchanges:
        while True:
            prompts, answers = zip(*(draw(rng) for _ in range(_BLOCK)))
            yield from zip(self._encode(prompts), self._encode(answers))

    def _row(self, completions: Exchanges, chats: Exchanges, rng: Random, row_len: int) -> _Row:
        row = _Row(row_len)
        while not row.is_full:
            num_exchanges = 1 if rng.random() < 0.3 else rng.randint(2, 30)
            if rng.random() < 0.5:
                self._add_completions(row, islice(completions, num_exchanges), rng)
            else:
                self._add_chat(row, islice(chats, num_exchanges), rng)
        return row

    def _add_completions(self, row: _Row, exchanges: Exchanges, rng: Random) -> None:
        """Lines such as 12+35=47; every answer is followed by <eos> as target, whatever the text goes on with."""
        if rng.random() < 0.9:
            row.add([self._id[BOS]])
        separator = rng.choice(self._separators)
        for prompt, answer in exchanges:
            row.add_exchange(prompt, answer, self._id[EOS])
            if row.is_full:
                return
            row.add(separator)
        row.add([self._id[EOS]])

    def _add_chat(self, row: _Row, exchanges: Exchanges, rng: Random) -> None:
        """The tokens that the chat template makes."""
        row.add([self._id[BOS]])
        if rng.random() < 0.2:
            row.add([self._id[SYSTEM], *rng.choice(self._system_texts), self._id[END]])
        for said, answer in exchanges:
            row.add_exchange([self._id[USER], *said, self._id[END], self._id[ASSISTANT]], answer, self._id[END])
            if row.is_full:
                return
            row.add([self._id[END]])


_packer = cache(Packer)  # one a process


def _make_batch(seed: int, index: int, num_rows: int, row_len: int) -> Batch:
    return _packer().batch(seed, index, num_rows, row_len)


def batches(seed: int, shapes: Shapes, num_workers: int, num_ahead: int) -> Generator[Batch, None, None]:
    """Batches 0, 1, 2, ..., the same for every `num_workers`; `shapes(index)` is (num_rows, row_len).

    With workers they are made ahead by forked processes, so call this before CUDA is touched; without, on demand.
    """
    if num_workers == 0:
        return (_make_batch(seed, index, *shapes(index)) for index in count())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return _from_pool(get_context("fork").Pool(num_workers), seed, shapes, num_ahead)


def _from_pool(pool: Pool, seed: int, shapes: Shapes, num_ahead: int) -> Generator[Batch, None, None]:
    def ask(index: int) -> AsyncResult[Batch]:
        return pool.apply_async(_make_batch, (seed, index, *shapes(index)))

    with pool:
        pending = deque(ask(index) for index in range(num_ahead))
        for index in count(num_ahead):
            yield pending.popleft().get()
            pending.append(ask(index))
