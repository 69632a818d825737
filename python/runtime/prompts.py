"""The shapes a prompt may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import ConfigError, InvalidRequestError, did_you_mean, prompt_too_long

if TYPE_CHECKING:
    from runtime.tokenizer import Tokenizer

# a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}
Prompt = str | Sequence[int] | Mapping[str, Any]

_KEYS = ("prompt", "prompt_token_ids")
_MAX_ID = (1 << 31) - 1


def split_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or a list of them, as a list. A non-empty list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequestError("prompts", prompts, "a prompt or a list of prompts")
    if prompts and all(_is_id(one) for one in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def encode_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, max_tokens: int | None = None
) -> tuple[str | None, list[int]]:
    """(text or None, token ids) of one prompt.

    Raises:
        InvalidRequestError: it has none of the shapes, no tokens, or more than `max_tokens`; None: any number.
        ConfigError: a text, and there is no tokenizer.
    """
    if isinstance(prompt, Mapping):
        prompt = _from_mapping(prompt)
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ConfigError("a text needs a tokenizer", hint="skip_tokenizer_init=True takes prompt_token_ids alone")
        text, token_ids = prompt, tokenizer.encode(prompt, max_tokens=max_tokens)
    else:
        text, token_ids = None, _checked_ids(prompt, max_tokens)
    if not token_ids or text == "":
        raise InvalidRequestError("prompt", [] if text is None else text, "at least one token")
    return text, token_ids


def encode_scored(
    prompt: Prompt, continuation: Prompt, tokenizer: Tokenizer | None
) -> tuple[str | None, list[int], int]:
    """(text or None, token ids of both, where the continuation begins); errors as `encode_prompt`."""
    text, token_ids = encode_prompt(prompt, tokenizer)
    if isinstance(continuation, str) and tokenizer is not None:
        scored = tokenizer.encode(continuation, add_special_tokens=False)
    else:
        scored = encode_prompt(continuation, tokenizer)[1]
    if not scored:
        raise InvalidRequestError("continuation", continuation, "at least one token")
    return text, [*token_ids, *scored], len(token_ids)


def _from_mapping(prompt: Mapping[str, Any]) -> str | Sequence[int]:
    for key in prompt:
        if key not in _KEYS:
            message = f"unknown key {key!r} of a prompt{did_you_mean(str(key), _KEYS)}"
            raise InvalidRequestError("prompt", prompt, message=message)
    if len(prompt) != 1:
        raise InvalidRequestError("prompt", prompt, "a mapping with either prompt or prompt_token_ids")
    ((key, value),) = prompt.items()
    if isinstance(value, str) != (key == "prompt"):
        raise InvalidRequestError(key, value, "a text" if key == "prompt" else "a list of token ids")
    return value  # type: ignore[no-any-return]


def _checked_ids(token_ids: object, max_tokens: int | None) -> list[int]:
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, (str, bytes)):
        raise InvalidRequestError(
            "prompt", token_ids, "a text, a list of token ids, {'prompt': ...} or {'prompt_token_ids': ...}"
        )
    if max_tokens is not None and len(token_ids) > max_tokens:
        raise prompt_too_long(len(token_ids), max_tokens)
    for one in token_ids:
        if not _is_id(one) or not 0 <= one <= _MAX_ID:
            raise InvalidRequestError("prompt_token_ids", one, f"integers between 0 and {_MAX_ID}")
    return [int(one) for one in token_ids]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
