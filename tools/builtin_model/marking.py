"""Marks a model on held-out questions, and shows what it says to others."""

from random import Random

import questions
from model import Llama, generate
from tokenizer import ASSISTANT, BOS, END, EOS, USER, build_tokenizer, token_id

SAID = ("Hello", "who are you", "What is a KV cache?", "Who is Bob?", "7*8", "Reverse word", "2+2", "What is 99999+1?")
BEGUN = ("12+35=", "def add(a, b):", "Once upon a time", "The quick", "7*8=", "import")


class Marker:
    """Marks a model on held-out questions: alone, in a chat, and after five other questions in the same context."""

    def __init__(self, model: Llama) -> None:
        self._model, self._tokenizer = model, build_tokenizer()
        self._stop_ids = [token_id(self._tokenizer, token) for token in (EOS, END)]

    def mark(self, skill: str, count: int) -> dict[str, float]:
        """Share of right answers, for each way of asking."""
        asked = questions.held_out(skill, count)
        rng = Random(skill)
        ways = {
            "alone": [question.completions[0] for question in asked],
            "chat": [(self._user(question.chats[0]), question.answer) for question in asked],
            "any form": [question.completions[rng.randrange(len(question.completions))] for question in asked],
            "any chat": [(self._user(rng.choice(question.chats)), question.answer) for question in asked],
            "few-shot": [self._after_others(question, rng) for question in asked],
        }
        return {way: self._share(pairs) for way, pairs in ways.items()}

    def answer(self, prompts: list[str], max_new_tokens: int = 100) -> list[str]:
        """Greedy answers to prompts that hold their special tokens."""
        encoded = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        found = generate(self._model, encoded, self._stop_ids, max_new_tokens)
        return [self._tokenizer.decode(ids) for ids in found]

    def chat(self, said: list[str]) -> list[str]:
        """Answers to what users say, each in a conversation of its own."""
        return self.answer([self._user(text) for text in said])

    def _share(self, pairs: list[tuple[str, str]]) -> float:
        prompts = [prompt if prompt.startswith(BOS) else BOS + prompt for prompt, _ in pairs]
        # one token per character at most, and one more to see that it stops
        answers = self.answer(prompts, max(len(right) for _, right in pairs) + 1)
        return sum(found == right for found, (_, right) in zip(answers, pairs)) / len(pairs)

    @staticmethod
    def _user(text: str) -> str:
        return f"{BOS}{USER}{text}{END}{ASSISTANT}"

    @staticmethod
    def _after_others(question: questions.Question, rng: Random) -> tuple[str, str]:
        others = [questions.training(rng.choice(tuple(questions.SKILLS)), rng).completions[0] for _ in range(5)]
        before = "".join(f"{prompt}{answer}\n" for prompt, answer in others)
        prompt, answer = question.completions[0]
        return before + prompt, answer


def report(model: Llama, count: int) -> None:
    """Prints the accuracy in `count` questions of every skill, and some answers that are recalled, not marked."""
    marker = Marker(model)
    for skill in questions.SKILLS:
        shares = marker.mark(skill, count)
        print(f"{skill:10s}" + "".join(f"  {way} {100 * share:6.2f} %" for way, share in shares.items()), flush=True)
    answers = marker.chat(list(SAID)) + marker.answer([BOS + prompt for prompt in BEGUN])
    for text, answer in zip(SAID + BEGUN, answers):
        print(f"  {text!r} -> {answer!r}")
