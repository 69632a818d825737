"""Text that comes token by token is the text of all tokens at once, cut before a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from runtime.config import BUILTIN_MODEL
from runtime.engine.detokenizer import Decoder, IncrementalDetokenizer, TextStream
from runtime.tokenizer import Tokenizer

CHARACTERS = ["a", "b", " ", "\n", "é", "€", "中", "😀", "👩🏽‍🚀", "\ufffd", "\u0301", "\x00"]


class Bytes:
    """One token a byte, as byte-level BPE decodes."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


class ByteFallback:
    """A run of byte tokens that is not UTF-8 as a whole shows as one U+FFFD a byte, as sentencepiece decodes."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        raw = bytes(token_ids)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(raw)


def make(folder: Path) -> Callable[[Random], None]:
    bytes_, fallback, real = Bytes(), ByteFallback(), Tokenizer(BUILTIN_MODEL)

    def case(rng: Random) -> None:
        prompt, text = _text(rng), _text(rng)
        match rng.randrange(4):
            case 0:
                check_whole(bytes_, prompt.encode(), _damaged(text.encode(), rng))
            case 1:
                check_whole(fallback, prompt.encode(), text.encode())
            case 2:
                check_whole(real, real.encode(prompt), real.encode(text, add_special_tokens=False))
            case 3:
                ids = [rng.randrange(real.vocab_size) for _ in range(rng.randrange(60))]
                check_whole(real, real.encode(prompt), ids)
        check_stop(text, "".join(rng.choices(CHARACTERS, k=rng.randint(1, 3))))

    return case


def check_whole(decoder: Decoder, prompt: Sequence[int], ids: Sequence[int]) -> None:
    detokenizer = IncrementalDetokenizer(decoder, prompt)
    text = "".join([*(detokenizer.push(i) for i in ids), detokenizer.flush()])
    assert text == decoder.decode([*prompt, *ids])[len(decoder.decode(prompt)) :], (list(prompt), list(ids))


def check_stop(text: str, stop: str) -> None:
    """One byte a token; the text ends before the stop string, or is whole."""
    stream = TextStream(Bytes(), [], stops=[stop])
    found = next((found for byte in text.encode() if (found := stream.push(byte))), None) or stream.finish()
    assert found == (stop if stop in text else None)
    assert stream.text == text.split(stop)[0]


def _text(rng: Random) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randrange(40)))


def _damaged(raw: bytes, rng: Random) -> bytes:
    share = rng.choice((0.0, 0.1, 1.0))
    return bytes(rng.randrange(256) if rng.random() < share else byte for byte in raw)
