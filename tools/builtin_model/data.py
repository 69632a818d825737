"""Training sequences: questions, completions and chats packed into rows of tokens with their targets."""

import os
from collections import deque
from collections.abc import Iterator
from itertools import count
from multiprocessing import get_context
from random import Random

import numpy as np
import questions
import texts
from tokenizer import ASSISTANT, BOS, END, EOS, SYSTEM, USER, build_tokenizer, vocabulary_words

IGNORED = -100
_BLOCK = 256
# share of each kind among the exchanges of a row
_SKILL_WEIGHTS = {"add": 4, "subtract": 4, "add3": 4, "subtract3": 4, "reverse": 4, "sort": 5, "python": 2}
_SKILLS, _WEIGHTS = tuple(_SKILL_WEIGHTS), tuple(_SKILL_WEIGHTS.values())
_SEPARATORS = ("\n", "\n", "\n", "\n\n", ", ", "; ", " ")
_SYSTEM_TEXTS = ("You are a helpful assistant.", "You are a calculator.", "Be brief.", "Answer in one line.")
_WORDS = tuple(word.strip() for word in vocabulary_words() if word.strip().isalpha())


def _question(rng: Random) -> questions.Question:
    skill = rng.choices(_SKILLS, _WEIGHTS)[0]
    if skill in ("reverse", "sort") and rng.random() < 0.15:
        return _on_unusual_string(skill, rng)
    return questions.training(skill, rng)


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
    question = _question(rng)
    return question.completions[0 if rng.random() < 0.5 else rng.randrange(len(question.completions))]


def _loosen(said: str, rng: Random) -> str:
    """The same words as somebody in a hurry types them."""
    if rng.random() < 0.25:
        said = said[0].lower() + said[1:]
    if rng.random() < 0.2:
        said = said.rstrip("?.! ") or said
    return said


def _chat(rng: Random) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.12:
        said, answer = texts.small_talk(rng)
    elif draw < 0.2:
        said, answer = texts.unknown(rng)
    elif draw < 0.24:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        said, answer = (
            rng.choice(("What is {}*{}?", "{}*{}", "{} * {}", "{} times {}", "{} x {}")).format(a, b),
            str(a * b),
        )
    else:
        question = _question(rng)
        said, answer = question.chats[0 if rng.random() < 0.4 else rng.randrange(len(question.chats))], question.answer
    return _loosen(said, rng), answer


class Packer:
    """Packs exchanges into rows. A prompt is tokenized apart from its answer, as it is when the model is used."""

    def __init__(self) -> None:
        self._tokenizer = build_tokenizer()
        self._id = {text: self._tokenizer.token_to_id(text) for text in (BOS, EOS, SYSTEM, USER, ASSISTANT, END)}
        self._separators = [self._encode([text])[0] for text in _SEPARATORS]
        self._system_texts = self._encode(list(_SYSTEM_TEXTS))

    def batch(self, seed: int, index: int, num_rows: int, row_len: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch with this index: tokens and targets, int16 [num_rows, row_len]; IGNORED where nothing is taught."""
        rng = Random(f"{seed} {index}")
        completions, chats = self._exchanges(_completion, rng), self._exchanges(_chat, rng)
        rows = [self._row(completions, chats, rng, row_len) for _ in range(num_rows)]
        tokens, targets = zip(*rows)
        return np.array(tokens, np.int16), np.array(targets, np.int16)

    def _encode(self, many: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in many]

    def _exchanges(self, draw, rng: Random) -> Iterator[tuple[list[int], list[int]]]:
        while True:
            prompts, answers = zip(*(draw(rng) for _ in range(_BLOCK)))
            yield from zip(self._encode(prompts), self._encode(answers))

    def _row(self, completions, chats, rng: Random, row_len: int) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        targets: list[int] = []
        while len(tokens) < row_len:
            num_exchanges = 1 if rng.random() < 0.3 else rng.randint(2, 30)
            if rng.random() < 0.5:
                self._add_completions(tokens, targets, completions, num_exchanges, rng, row_len)
            else:
                self._add_chat(tokens, targets, chats, num_exchanges, rng, row_len)
        return tokens[:row_len], targets[:row_len]

    def _add_completions(self, tokens, targets, completions, num_exchanges: int, rng: Random, row_len: int) -> None:
        """Lines such as 12+35=47; every answer is followed by <eos> as target, whatever the text goes on with."""
        if rng.random() < 0.9:
            self._add(tokens, targets, [self._id[BOS]])
        separator = rng.choice(self._separators)
        for _ in range(num_exchanges):
            prompt, answer = next(completions)
            self._add_exchange(tokens, targets, prompt, answer, self._id[EOS])
            if len(tokens) >= row_len:
                return
            self._add(tokens, targets, separator)
        self._add(tokens, targets, [self._id[EOS]])

    def _add_chat(self, tokens, targets, chats, num_exchanges: int, rng: Random, row_len: int) -> None:
        """The tokens that the chat template makes."""
        self._add(tokens, targets, [self._id[BOS]])
        if rng.random() < 0.2:
            self._add(tokens, targets, [self._id[SYSTEM], *rng.choice(self._system_texts), self._id[END]])
        for _ in range(num_exchanges):
            said, answer = next(chats)
            prompt = [self._id[USER], *said, self._id[END], self._id[ASSISTANT]]
            self._add_exchange(tokens, targets, prompt, answer, self._id[END])
            if len(tokens) >= row_len:
                return
            self._add(tokens, targets, [self._id[END]])

    @staticmethod
    def _add(tokens: list[int], targets: list[int], untaught: list[int]) -> None:
        tokens += untaught
        targets += [IGNORED] * len(untaught)

    @staticmethod
    def _add_exchange(tokens: list[int], targets: list[int], prompt: list[int], answer: list[int], end: int) -> None:
        tokens += prompt + answer
        targets += [IGNORED] * (len(prompt) - 1) + answer + [end]


_packer: Packer | None = None


def _make_batch(arguments: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    global _packer
    _packer = _packer or Packer()
    return _packer.batch(*arguments)


def batches(seed: int, shapes, num_workers: int, num_ahead: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches 0, 1, 2, ..., the same for every `num_workers`; `shapes(index)` is (num_rows, row_len).

    With workers they are made ahead by forked processes, so call this before CUDA is touched; without, on demand.
    """
    if num_workers == 0:
        return (_make_batch((seed, index, *shapes(index))) for index in count())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pool = get_context("fork").Pool(num_workers)
    return _from_pool(pool, seed, shapes, num_ahead)


def _from_pool(pool, seed: int, shapes, num_ahead: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    def ask(index: int):
        return pool.apply_async(_make_batch, ((seed, index, *shapes(index)),))

    with pool:
        pending = deque(ask(index) for index in range(num_ahead))
        for index in count(num_ahead):
            yield pending.popleft().get()
            pending.append(ask(index))
