"""Questions whose answers can be marked: what the built-in model is trained on and tested with.

A question belongs either to training or to the held-out tenth, by a hash of its `key`; `training` and `held_out`
draw from the two sides. Standard library only, so that tests load this file without the training tool.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_NUMBER = 999
MAX_STRING = 10
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 400


@dataclass(frozen=True)
class Question:
    """One question in all the ways it may be asked.

    Attributes:
        skill: a name in SKILLS.
        completions: (prompt, text that completes it); the first one is the usual form, `12+35=`.
        chats: what a user may say; the first one is the usual form, `What is 12+35?`.
        answer: the answer in a chat.
        key: what the hash sees. Questions that give each other away share it (12+35 and 35+12). None: always in
            training, because there are too few of the kind to hold any out (single digits, one or two letters).
    """

    skill: str
    completions: tuple[tuple[str, str], ...]
    chats: tuple[str, ...]
    answer: str
    key: str | None

    @property
    def held_out(self) -> bool:
        if self.key is None:
            return False
        digest = hashlib.blake2b(self.key.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**32


def _sum_or_difference(skill: str, a: int, sign: str, b: int, phrases: tuple[str, ...]) -> Question:
    answer = str(a + b if sign == "+" else a - b)
    tight, spaced = f"{a}{sign}{b}", f"{a} {sign} {b}"
    completions = (
        (f"{tight}=", answer),
        (f"{tight} =", f" {answer}"),
        (f"{spaced} =", f" {answer}"),
        (f"{spaced} = ", answer),
        (f"Q: {tight}\nA:", f" {answer}"),
        (f"Q: What is {spaced}?\nA:", f" {answer}"),
    )
    asked = ("What is {}?", "{}", "{}=", "{} = ?", "How much is {}?", "Calculate {}", "What's {}?", "and {}?", "{}?")
    chats = tuple(form.format(text) for form in asked for text in (tight, spaced))
    key = None if max(a, b) < 10 else f"{sign} {min(a, b)} {max(a, b)}"
    return Question(skill, completions, chats + phrases, answer, key)


def add(skill: str, a: int, b: int) -> Question:
    phrases = (
        f"What is {a} plus {b}?",
        f"{a} plus {b}",
        f"Add {a} and {b}",
        f"Please add {a} and {b}.",
        f"Add {a} to {b}",
    )
    return _sum_or_difference(skill, a, "+", b, phrases)


def subtract(skill: str, a: int, b: int) -> Question:
    phrases = (f"What is {a} minus {b}?", f"{a} minus {b}", f"Subtract {b} from {a}", f"Please take {b} from {a}.")
    return _sum_or_difference(skill, a, "-", b, phrases)


def _on_string(skill: str, text: str, answer: str, phrases: tuple[str, ...]) -> Question:
    call = f"{skill}({text})"
    completions = (
        (f"{call}=", answer),
        (f"{call} =", f" {answer}"),
        (f'{skill}("{text}") = ', f'"{answer}"'),
        (f"Q: {call}\nA:", f" {answer}"),
    )
    quoted = tuple(phrase.format(f'"{text}"') for phrase in phrases)
    chats = tuple(phrase.format(text) for phrase in phrases)
    key = None if len(text) < 3 else f"{skill} {text}"
    return Question(skill, completions, (*chats, call, f"{call}=", f"What is {call}?", *quoted), answer, key)


def reverse(text: str) -> Question:
    phrases = ("Reverse {}", "Reverse the word {}", "Please reverse {}.", "Spell {} backwards", "What is {} backwards?")
    return _on_string("reverse", text, text[::-1], phrases)


def sort(text: str) -> Question:
    phrases = ("Sort {}", "Sort the letters of {}", "Sort the letters in {}", "Please sort {}.", "Put {} in order")
    return _on_string("sort", text, "".join(sorted(text)), phrases)


# name -> the body, where {0}, {1}, ... are the parameters
FUNCTIONS = {
    "add": "return {0} + {1}",
    "subtract": "return {0} - {1}",
    "multiply": "return {0} * {1}",
    "divide": "return {0} / {1}",
    "power": "return {0} ** {1}",
    "mean": "return ({0} + {1}) / 2",
    "maximum": "return {0} if {0} > {1} else {1}",
    "minimum": "return {0} if {0} < {1} else {1}",
    "is_equal": "return {0} == {1}",
    "swap": "return {1}, {0}",
    "gcd": "while {1}:\n        {0}, {1} = {1}, {0} % {1}\n    return {0}",
    "contains": "return {1} in {0}",
    "square": "return {0} * {0}",
    "cube": "return {0} * {0} * {0}",
    "double": "return 2 * {0}",
    "half": "return {0} / 2",
    "negate": "return -{0}",
    "absolute": "return {0} if {0} >= 0 else -{0}",
    "is_even": "return {0} % 2 == 0",
    "is_odd": "return {0} % 2 == 1",
    "factorial": "return 1 if {0} < 2 else {0} * factorial({0} - 1)",
    "fibonacci": "return {0} if {0} < 2 else fibonacci({0} - 1) + fibonacci({0} - 2)",
    "reverse": "return {0}[::-1]",
    "is_palindrome": "return {0} == {0}[::-1]",
    "first": "return {0}[0]",
    "last": "return {0}[-1]",
    "length": "return len({0})",
    "total": "return sum({0})",
    "greet": 'return "Hello, " + {0}',
    "identity": "return {0}",
}
PARAMETERS = (*LETTERS, "left", "right", "value", "number", "text", "name", "items", "other", "first", "second")


def define(function: str, parameters: tuple[str, ...]) -> Question:
    head = f"def {function}({', '.join(parameters)}):"
    body = "\n    " + FUNCTIONS[function].format(*parameters)
    chats = (f"Complete {head}", head, f"Write {head}", f"Finish this function: {head}")
    return Question("python", ((head, body),), chats, head + body, head)


def num_parameters(function: str) -> int:
    return 2 if "{1}" in FUNCTIONS[function] else 1


def _random_text(rng: Random, min_len: int, alphabet: str = LETTERS) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(min_len, MAX_STRING)))


def _large_pair(rng: Random) -> tuple[int, int]:
    large, other = rng.randint(100, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
    return (large, other) if rng.random() < 0.5 else (other, large)


def _define_some(rng: Random) -> Question:
    function = rng.choice(tuple(FUNCTIONS))
    return define(function, tuple(rng.sample(PARAMETERS, num_parameters(function))))


# skill -> draws one of its questions, held out or not
SKILLS: dict[str, Callable[[Random], Question]] = {
    "add": lambda rng: add("add", rng.randint(0, 99), rng.randint(0, 99)),
    "subtract": lambda rng: subtract("subtract", rng.randint(0, 99), rng.randint(0, 99)),
    "add3": lambda rng: add("add3", *_large_pair(rng)),
    "subtract3": lambda rng: subtract("subtract3", *_large_pair(rng)),
    "reverse": lambda rng: reverse(_random_text(rng, 1)),
    "sort": lambda rng: sort(_random_text(rng, 1)),
    "python": _define_some,
}


def training(skill: str, rng: Random) -> Question:
    """Draws a question that is not held out."""
    while True:
        question = SKILLS[skill](rng)
        if not question.held_out:
            return question


def held_out(skill: str, count: int, seed: int = 0) -> list[Question]:
    """Draws `count` different held-out questions, the same ones for the same seed.

    `count` may be at most MAX_HELD_OUT: two-digit additions have about 1,000 held out.
    """
    if not 0 <= count <= MAX_HELD_OUT:
        raise ValueError(f"count={count}: 0 to {MAX_HELD_OUT} are possible")
    rng = Random(f"{skill} {seed}")
    found: dict[str, Question] = {}
    while len(found) < count:
        question = SKILLS[skill](rng)
        if question.held_out:
            found[question.completions[0][0]] = question
    return list(found.values())
