"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime.errors import InvalidRequestError
from runtime.prompts import encode_prompt, split_prompts
from runtime.server.generation import Choice, Generation, Prompt
from runtime.server.messages import Candidate, Delta
from runtime.server.protocol import CompletionBody, Parsed, parse, read_body
from runtime.server.serving import Serving

MIN_LOGPROB = -9999.0  # JSON has no infinity


async def create_completion(request: Request) -> Response:
    serving: Serving = request.app
    serving.check_accepting()

    def understand(found: dict[str, Any]) -> tuple[CompletionBody, Parsed, bool]:
        body, passed, unknown = read_body(found, CompletionBody)
        serving.check_model(body.model)
        generate = not _asks_for_nothing(body, passed)
        if not generate:
            del passed["max_tokens"]
        counts = {"logprobs": _count("logprobs", body), "prompt_logprobs": _count("prompt_logprobs", body)}
        if body.echo and counts["prompt_logprobs"] is None:
            counts["prompt_logprobs"] = counts["logprobs"]
        parsed = parse(body, passed, unknown, request.headers, serving.config.request_timeout, **counts)
        return body, parsed, generate

    body, parsed, generate = await serving.read_object(request, understand)
    serving.check_room(request.scope, parsed)
    prompts = await _encode(serving, body.prompt, parsed.params.n)
    shape = CompletionShape(
        serving.model, parsed.params.logprobs, shows_prompt_logprobs=body.prompt_logprobs is not None
    )
    if body.echo:
        await shape.prepare_echo(serving, prompts)
    generation = Generation(
        serving,
        request,
        prompts,
        parsed,
        shape,
        generate=generate,
        stream_options=body.stream_options,
    )
    return await generation.respond(stream=bool(body.stream))


class CompletionShape:
    """OpenAI's `text_completion`, whole and in chunks, which look alike.

    Args:
        num_logprobs: None: no logprobs.
        shows_prompt_logprobs: vLLM's `prompt_logprobs` of each choice.
    """

    def __init__(self, model: str, num_logprobs: int | None, *, shows_prompt_logprobs: bool) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._model = model
        self._has_logprobs = num_logprobs is not None
        self._shows_prompt_logprobs = shows_prompt_logprobs
        self._created = int(time.time())
        self._echoed: dict[int, list[str]] = {}  # prompt, by identity: the text of its tokens
        self._text_lens: dict[int, int] = {}  # by choice

    async def prepare_echo(self, serving: Serving, prompts: Sequence[Prompt]) -> None:
        """The prompts come before their completions."""
        for prompt in prompts:
            self._echoed[id(prompt)] = await serving.decode_each(prompt.token_ids) if self._has_logprobs else []
            if prompt.text is None:
                ids, tokenizer = prompt.token_ids, serving.tokenizer
                prompt.text = await serving.in_thread(lambda ids=ids, t=tokenizer: t.decode(ids))  # type: ignore[misc]

    def head(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        if id(prompt) not in self._echoed:
            return None
        return self._envelope([self._choice(index, prompt.text or "", self._prompt_logprobs(index, prompt), None)])

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        logprobs = None
        if self._has_logprobs:
            logprobs = self._logprobs(index, _with_texts(delta.token_ids, delta.logprobs or []))
        return [self._envelope([self._choice(index, delta.text, logprobs, delta.finish_reason)])]

    def tail(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._envelope([]), "usage": usage}

    def whole(self, prompts: Sequence[Prompt], choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        n = len(choices) // len(prompts)
        found = [self._whole_choice(i, prompts[i // n], choice) for i, choice in enumerate(choices)]
        return {**self._envelope(found), "usage": usage}

    def _whole_choice(self, index: int, prompt: Prompt, choice: Choice) -> dict[str, Any]:
        text, logprobs = "".join(choice.text), None
        is_echoed = id(prompt) in self._echoed
        if self._has_logprobs:
            logprobs = self._prompt_logprobs(index, prompt) if is_echoed else None
            own = self._logprobs(index, _with_texts(choice.token_ids, choice.logprobs))
            logprobs = own if logprobs is None else {name: [*logprobs[name], *own[name]] for name in own}
        if is_echoed:
            text = (prompt.text or "") + text
        found = self._choice(index, text, logprobs, choice.finish_reason or "length")
        if self._shows_prompt_logprobs:
            found["prompt_logprobs"] = [_by_id(position) for position in prompt.scores] or [None]
        return found

    def _prompt_logprobs(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        scores = prompt.scores or [[] for _ in prompt.token_ids]
        return self._logprobs(index, list(zip(prompt.token_ids, self._echoed[id(prompt)], scores)))

    def _logprobs(self, index: int, tokens: Sequence[tuple[int, str, list[Candidate]]]) -> dict[str, Any]:
        """Parallel lists, one entry a token: (id, text, candidates)."""
        offsets = []
        for _, text, _ in tokens:
            offsets.append(self._text_lens.get(index, 0))
            self._text_lens[index] = offsets[-1] + len(text)
        return {
            "tokens": [text for _, text, _ in tokens],
            "token_logprobs": [_logprob_of(token, candidates) for token, _, candidates in tokens],
            "top_logprobs": [
                {c.text: bounded(c.logprob) for c in candidates} if candidates else None for _, _, candidates in tokens
            ],
            "text_offset": offsets,
        }

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _choice(self, index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def bounded(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def _with_texts(
    token_ids: Sequence[int], logprobs: Sequence[list[Candidate]]
) -> list[tuple[int, str, list[Candidate]]]:
    return [
        (token, next((c.text for c in candidates if c.token_id == token), ""), candidates)
        for token, candidates in zip(token_ids, logprobs)
    ]


def _logprob_of(token: int, candidates: Sequence[Candidate]) -> float | None:
    return next((bounded(c.logprob) for c in candidates if c.token_id == token), None)


def _by_id(position: Sequence[Candidate]) -> dict[str, Any] | None:
    if not position:
        return None
    return {str(c.token_id): {"logprob": bounded(c.logprob), "rank": c.rank, "decoded_token": c.text} for c in position}


def _count(name: str, body: CompletionBody) -> Any:
    """A number of logprobs; false is as good as null, true as 1."""
    value = getattr(body, name)
    return (1 if value else None) if isinstance(value, bool) else value


def _asks_for_nothing(body: CompletionBody, passed: dict[str, Any]) -> bool:
    """max_tokens=0 is for prompts that are echoed or scored."""
    is_zero = passed.get("max_tokens") == 0 and not isinstance(passed["max_tokens"], bool)
    scores = body.prompt_logprobs is not None or (body.echo and body.logprobs is not None)
    return bool(is_zero and scores)


async def _encode(serving: Serving, prompt: Any, n: int) -> list[Prompt]:
    """Each prompt's tokens, if n completions of each may be taken now."""
    if prompt is None:
        raise InvalidRequestError("prompt", prompt, "a text, token ids, or a list of either")
    tokenizer = serving.tokenizer if serving.has_tokenizer else None
    max_tokens = serving.engine.info.max_model_len - 1

    def encode() -> list[Prompt]:
        prompts = split_prompts(prompt)
        if not prompts:
            raise InvalidRequestError("prompt", prompt, "at least one prompt")
        serving.engine.check_room(len(prompts) * n)
        return [Prompt(*encode_prompt(one, tokenizer, max_tokens)) for one in prompts]

    return await serving.on_text(_length_of(prompt), encode)


def _length_of(prompt: Any) -> int:
    """Characters and tokens of a prompt or a list of them, whatever else it may be."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(one) if isinstance(one, (str, list)) else 1 for one in prompt) if isinstance(prompt, list) else 1
