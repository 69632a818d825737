"""Text to token ids and back, from the files of a model folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from runtime.chat_template import ChatTemplate, Message
from runtime.errors import ConfigError, InvalidRequestError, ModelFormatError, prompt_too_long
from runtime.loader.model_folder import MAX_JSON_BYTES, check_model_folder, file_in_folder, read_json

MAX_PROMPT_CHARS = 16 << 20
_PIECE_CHARS = 1 << 16
_CHARS_PER_TOKEN = 8  # hardly any text has more
_PIECE_SLACK = 1 << 10
_MANY_TOKENS = 1 << 12  # a fraction of a millisecond


class Tokenizer:
    """The tokenizer of a model folder. Immutable; every method may be called from any thread.

    Args:
        folder: holds tokenizer.json; tokenizer_config.json and chat_template.jinja where there are any.
    """

    def __init__(self, folder: Path) -> None:
        folder = check_model_folder(folder)
        if not (folder / "tokenizer.json").exists():
            raise ModelFormatError(
                f"{folder} has no tokenizer.json", hint="skip_tokenizer_init=True takes and gives token ids alone"
            )
        text = _read_text(file_in_folder(folder, "tokenizer.json"))
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ModelFormatError(f"tokenizer.json of {folder} is not a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = _read_object(folder, "tokenizer_config.json")
        templates = self._read_chat_templates(folder)
        self.chat_template = templates.get("default")
        self._tool_template = templates.get("tool_use", self.chat_template)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return dict(self._config)

    def to_json(self) -> str:
        """tokenizer.json as it was understood, for other libraries."""
        return str(self._tokenizer.to_str())

    def close(self) -> None:
        """Ends the process that renders the chat template; another one starts when it is needed."""
        for template in (self.chat_template, self._tool_template):
            if template is not None:
                template.close()

    def check_vocab_size(self, model_vocab_size: int) -> None:
        """ModelFormatError when it knows tokens that the model has no embedding for."""
        if self.vocab_size > model_vocab_size:
            raise ModelFormatError(
                f"the tokenizer knows {self.vocab_size} tokens, but the model's vocabulary has {model_vocab_size}",
                hint="they belong to different models",
            )

    def encode(self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Token ids.

        Raises:
            InvalidRequestError: it cannot be tokenised, or has more than `max_tokens` tokens; None: any number.
        """
        if len(text) > MAX_PROMPT_CHARS:
            raise InvalidRequestError(
                "prompt", message=f"the prompt has {len(text)} characters; the limit is {MAX_PROMPT_CHARS}"
            )
        if max_tokens is not None:
            self.check_fits([text], max_tokens)
        encoding = self._encode(text, add_special_tokens=add_special_tokens)
        if max_tokens is not None and len(encoding) > max_tokens:
            raise prompt_too_long(len(encoding), max_tokens)
        found: list[int] = encoding.ids
        return found

    def check_fits(self, texts: Sequence[str], max_tokens: int) -> None:
        """Refuses texts that are far too long at the first piece that shows it: millions of tokens are a list that is
        made, and freed, without letting other threads run. A text in pieces has more tokens than the whole, so up to
        twice `max_tokens` pass here.

        Raises:
            InvalidRequestError: they have more.
        """
        if sum(map(len, texts)) <= max(_PIECE_CHARS, _CHARS_PER_TOKEN * max_tokens):
            return
        num_tokens = 0
        for piece in _pieces(texts):
            num_tokens += len(self._encode(piece, add_special_tokens=False))
            if num_tokens > 2 * max_tokens + _PIECE_SLACK:
                raise prompt_too_long(f"more than {num_tokens // 2}", max_tokens)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            # the batch's, unlike the single text's, lets other threads run meanwhile
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except Exception as error:  # e.g. lone surrogates
            raise InvalidRequestError("prompt", message=f"the prompt cannot be tokenised: {error}") from None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        if len(token_ids) <= _MANY_TOKENS:
            return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))
        # as in _encode
        return str(self._tokenizer.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)[0])

    def token_to_id(self, token: str) -> int | None:
        """None for what is no token as a whole."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def is_special(self, token: str) -> bool:
        """Whether `decode` leaves it out under `skip_special_tokens`."""
        return any(t.special and t.content == token for t in self._tokenizer.get_added_tokens_decoder().values())

    @property
    def tool_template_source(self) -> str:
        """The chat template of conversations with tools; "": there is none."""
        return "" if self._tool_template is None else self._tool_template.source

    def apply_chat_template(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> str:
        """The prompt of a conversation; it already holds its special tokens.

        Raises:
            ConfigError: the model has no chat template.
            InvalidRequestError: it has one that would leave out the tools, or what was said of them.
        """
        template = self.chat_template if tools is None else self._tool_template
        if template is None:
            raise ConfigError(
                "this model has no chat template",
                hint="tokenizer_config.json or chat_template.jinja holds one; `generate` needs none",
            )
        if tools is not None and not template.shows_tools():
            raise InvalidRequestError(
                "tools", message="tools: this model's chat template leaves them out of the prompt"
            )
        return template.render(messages, tools=tools, **options)

    def _read_chat_templates(self, folder: Path) -> dict[str, ChatTemplate]:
        """By name, of which `transformers` knows "default" and "tool_use"."""
        name = "chat_template.jinja"
        source = self._config.get("chat_template")
        if (folder / name).exists():
            source = _read_text(file_in_folder(folder, name))
        named = {"default": source}
        if isinstance(source, list):  # [{"name", "template"}, ...]
            named = {entry["name"]: entry["template"] for entry in source if isinstance(entry, Mapping)}
        tokens = self._special_tokens()
        return {name: ChatTemplate(text, tokens) for name, text in named.items() if isinstance(text, str)}

    def _special_tokens(self) -> dict[str, str]:
        """bos_token and the like, which templates name."""
        tokens = {}
        for name, value in self._config.items():
            content = value.get("content") if isinstance(value, Mapping) else value
            if name.endswith("_token") and isinstance(content, str):
                tokens[name] = content
        return tokens


def _pieces(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARS):
            yield text[start : start + _PIECE_CHARS]


def read_eos_token_ids(folder: Path) -> list[int]:
    """End-of-sequence ids: generation_config.json's, else config.json's; a number or a list in either."""
    for name in ("generation_config.json", "config.json"):
        found = _read_object(folder, name).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ModelFormatError(f"{name}: eos_token_id={found!r}: must be a token id or a list of them")
        if ids:
            return list(dict.fromkeys(ids))
    return []


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder; {} if there is no such file."""
    return read_json(folder, name) if (folder / name).exists() else {}


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{path.name} has {path.stat().st_size} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path.name} is not UTF-8: {error}") from None
