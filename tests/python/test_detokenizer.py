"""Text from tokens: whole characters only, stop strings wherever token borders are."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from runtime.engine.detokenizer import IncrementalDetokenizer, StopStrings, TextStream

CHARACTERS = ["a", "b", " ", "é", "€", "中", "😀", "\ufffd", "\n"]


class Bytes:
    """One token a byte; what is not UTF-8 shows as U+FFFD, as byte-level BPE decodes."""

    def decode(self, token_ids, *, skip_special_tokens=True):
        return bytes(token_ids).decode("utf-8", "replace")


class ByteFallback:
    """A run of byte tokens that is not UTF-8 as a whole shows as one U+FFFD a byte, as sentencepiece decodes."""

    def decode(self, token_ids, *, skip_special_tokens=True):
        raw = bytes(token_ids)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(raw)


class Words:
    """Token i is " w<i>"; a leading space of the whole text is dropped, as llama's decoder does."""

    def decode(self, token_ids, *, skip_special_tokens=True):
        return "".join(f" w{i}" for i in token_ids).removeprefix(" ")


def random_text(rng, length):
    return "".join(rng.choice(CHARACTERS) for _ in range(length))


def run(decoder, prompt, tokens):
    detokenizer = IncrementalDetokenizer(decoder, prompt)
    pieces = [detokenizer.push(token) for token in tokens]
    return pieces, detokenizer.flush()


@pytest.mark.parametrize("decoder", [Bytes(), ByteFallback()])
def test_valid_text_comes_out_whole(decoder):
    rng = random.Random(1)
    for _ in range(500):
        text = random_text(rng, rng.randrange(80))
        pieces, rest = run(decoder, "été €".encode(), text.encode())
        assert "".join(pieces) + rest == text


def test_a_prompt_may_be_cut_inside_a_character():
    """Of a prompt only the end is read; a run of byte tokens that begins inside a character would spoil the output."""
    for prompt in ("😀😀😀", "a€€€", "\ufffd\ufffd😀", "é" * 9):
        pieces, rest = run(ByteFallback(), prompt.encode(), "é😀".encode())
        assert "".join(pieces) + rest == "é😀"


def test_a_long_run_of_byte_tokens_comes_out_whole():
    text = "😀" * 100
    pieces, rest = run(ByteFallback(), b"a", text.encode())
    assert "".join(pieces) + rest == text


def test_any_bytes_come_out_as_when_decoded_at_once():
    rng = random.Random(2)
    for _ in range(3000):
        raw = [b if rng.random() < 0.9 else rng.randrange(256) for b in random_text(rng, rng.randrange(60)).encode()]
        pieces, rest = run(Bytes(), list(b"prompt"), raw)
        assert "".join(pieces) + rest == bytes(raw).decode("utf-8", "replace")


def test_half_a_character_is_never_shown():
    pieces, rest = run(Bytes(), [], "a😀b".encode())
    assert pieces == ["a", "", "", "", "😀", "b"]
    assert rest == ""


def test_half_a_character_at_the_end_is_shown_at_the_end():
    pieces, rest = run(Bytes(), [], "a😀".encode()[:-1])
    assert pieces == ["a", "", "", ""]
    assert rest == "\ufffd"


def test_endless_invalid_bytes_are_not_held_back_for_ever():
    pieces, rest = run(Bytes(), [], [0xFF] * 400)
    assert len("".join(pieces)) > 380
    assert "".join(pieces) + rest == "\ufffd" * 400


def test_the_space_between_prompt_and_output_is_kept():
    pieces, _ = run(Words(), [1, 2], [3, 4])
    assert pieces == [" w3", " w4"]
    pieces, _ = run(Words(), [], [3, 4])
    assert pieces == ["w3", " w4"]


@pytest.fixture(scope="module")
def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox 中中 €€ 😀😀 été"] * 9, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def test_a_real_tokenizer_gives_back_the_text(bpe):
    rng = random.Random(3)
    for _ in range(200):
        text = random_text(rng, rng.randrange(1, 60)) + "the fox"
        pieces, rest = run(bpe, bpe.encode("the quick").ids, bpe.encode(text, add_special_tokens=False).ids)
        assert "".join(pieces) + rest == text


def test_special_tokens_show_only_when_asked_for(bpe):
    assert run(bpe, [], [0])[0] == [""]
    detokenizer = IncrementalDetokenizer(bpe, [], skip_special_tokens=False)
    assert detokenizer.push(0) == "<s>"


def cut(text, rng):
    pieces, i = [], 0
    while i < len(text):
        size = rng.randrange(1, 4)
        pieces.append(text[i : i + size])
        i += size
    return pieces


def first_end(text, stops):
    """The stop string that is complete first; of two with the same end the longer one."""
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(ends)[1:] if ends else None


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_found_wherever_the_pieces_end(include):
    rng = random.Random(4)
    for _ in range(4000):
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(14)))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(1, 3))]
        checker, shown, found = StopStrings(stops, include=include), "", None
        for piece in cut(text, rng):
            delta, found = checker.push(piece)
            shown += delta
            if found is not None:
                break
        else:
            shown += checker.flush()
        match = first_end(text, stops)
        if match is None:
            assert (found, shown) == (None, text)
        else:
            start, stop = match
            assert (found, shown) == (stop, text[: start + len(stop)] if include else text[:start])


def test_only_what_may_become_a_stop_string_is_held_back():
    checker = StopStrings(["END"])
    assert checker.push("aE") == ("a", None)
    assert checker.push("N") == ("", None)
    assert checker.push("x") == ("ENx", None)
    assert checker.push("EEND") == ("E", "END")


def test_a_stop_string_before_min_tokens_does_not_count():
    text = TextStream(Bytes(), [], stops=["b"], min_tokens=2)
    assert [text.push(token) for token in b"abcb"] == [None, None, None, "b"]
    assert text.text == "abc"


def test_a_stop_string_may_be_completed_by_the_end():
    text = TextStream(Bytes(), [], stops=["\ufffd"])
    assert [text.push(token) for token in b"a\xf0"] == [None, None]
    assert text.finish() == "\ufffd"
    assert text.text == "a"
