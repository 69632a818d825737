"""The tokenizer of the built-in model: bytes, plus whole words that it meets often.

There are no merges: a piece of the text that is a word of the vocabulary becomes one token, everything else becomes
one token per byte. So every UTF-8 text round-trips, digits stand alone, and the letters of a string to be reversed
or sorted are tokens of their own.
"""

import json
import re
from collections import Counter
from pathlib import Path

import questions
import texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, SYSTEM, USER, ASSISTANT, END = "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, SYSTEM, USER, ASSISTANT, END)
NUM_WORDS = 181
PIECE = r" ?[A-Za-z_]+|\n *|[0-9]"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _known_texts() -> list[str]:
    """Every text whose words may enter the vocabulary, with 0 in the place of numbers and strings."""
    asked = [questions.add("", 0, 0), questions.subtract("", 0, 0), questions.reverse("0"), questions.sort("0")]
    defined = [questions.define(name, ("0", "0")[: questions.num_parameters(name)]) for name in questions.FUNCTIONS]
    found = [text for question in asked + defined for text in (*question.chats, question.answer)]
    found += [text for said, answer in texts.SMALL_TALK.items() for text in (*said, answer)]
    return found + [*texts.TEXTS, *texts.ASKED_TERM, texts.UNKNOWN, texts.TOO_LARGE, "Q:"]


def vocabulary_words() -> list[str]:
    """The most frequent words of three letters or more, each with or without the space before it."""
    words = Counter(piece for text in _known_texts() for piece in re.findall(PIECE, text) if len(piece.strip()) > 2)
    indents = ["\n    ", "\n        "]
    by_count = sorted(words, key=lambda word: (-words[word], word))
    return indents + by_count[: NUM_WORDS - len(indents)]


def _byte_level(text: str) -> str:
    """`text` in the alphabet that byte-level vocabularies are written in (space is Ġ)."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def build_tokenizer() -> Tokenizer:
    """Special tokens first (ids 0 to 5), then the 256 bytes, then the words."""
    entries = [
        *SPECIAL_TOKENS,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(_byte_level(word) for word in vocabulary_words()),
    ]
    vocabulary = {entry: token_id for token_id, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Raises KeyError for a token that it does not have."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_len: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_len,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
