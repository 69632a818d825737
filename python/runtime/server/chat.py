"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime.errors import InvalidRequestError
from runtime.server.completions import bounded
from runtime.server.conversation import read_messages
from runtime.server.generation import Choice, Generation, Prompt
from runtime.server.messages import Candidate, Delta
from runtime.server.output_form import output_form
from runtime.server.protocol import ChatBody, Parsed, parse, read_body
from runtime.server.serving import Serving
from runtime.server.tool_answer import ToolAnswer
from runtime.server.tool_use import ToolUse, read_tools


async def create_chat_completion(request: Request) -> Response:
    serving: Serving = request.app
    serving.check_accepting()
    body, tools, parsed = await serving.read_object(request, lambda found: _understand(serving, request, found))
    serving.check_room(request.scope, parsed)
    prompt = await encode_chat(serving, body, tools)
    answers = serving.tool_caller.answers(tools, parsed.params.n)
    generation = Generation(
        serving,
        request,
        [prompt],
        parsed,
        ChatShape(serving.model, parsed.params.logprobs, answers),
        stream_options=body.stream_options,
    )
    return await generation.respond(stream=bool(body.stream))


def _understand(serving: Serving, request: Request, found: dict[str, Any]) -> tuple[ChatBody, ToolUse, Parsed]:
    body, passed, unknown = read_body(found, ChatBody)
    serving.check_model(body.model)
    max_tokens = passed.pop("max_tokens", None)
    if body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
    num_logprobs, tools = _num_logprobs(body), read_tools(body)
    if tools.forced and output_form(body) is not None:
        message = "tool_choice: a call that must come and another form of the answer contradict each other"
        raise InvalidRequestError("tool_choice", message=message)
    passed |= serving.tool_caller.sampling(tools)
    timeout_s = serving.config.request_timeout
    parsed = parse(body, passed, unknown, request.headers, timeout_s, logprobs=num_logprobs, max_tokens=max_tokens)
    return body, tools, parsed


async def encode_chat(serving: Serving, body: ChatBody, tools: ToolUse) -> Prompt:
    """The prompt of a conversation, under the model's own chat template."""
    tokenizer, max_tokens = serving.tokenizer, serving.engine.info.max_model_len - 1
    variables = dict(body.chat_template_kwargs or {})
    reserved = {"messages", "tools", "documents", "add_generation_prompt"} & set(variables)
    if reserved:
        raise InvalidRequestError(
            "chat_template_kwargs", message=f"chat_template_kwargs: {min(reserved)} is not its own"
        )
    if body.continue_final_message:
        raise InvalidRequestError("continue_final_message", message="continue_final_message is not supported")
    adds = True if body.add_generation_prompt is None else body.add_generation_prompt

    def encode() -> Prompt:
        messages = read_messages(body.messages)
        tokenizer.check_fits([message["content"] or "" for message in messages], max_tokens)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=adds, tools=tools.shown, **variables)
        text += serving.tool_caller.beginning(tools)
        token_ids = tokenizer.encode(text, add_special_tokens=False, max_tokens=max_tokens)
        if not token_ids:
            raise InvalidRequestError("messages", message="the messages make an empty prompt")
        return Prompt(text, token_ids)

    return await serving.in_thread(encode)


class ChatShape:
    """OpenAI's `chat.completion` and `chat.completion.chunk`.

    Args:
        num_logprobs: None: no logprobs.
        answers: read each choice for tool calls; empty: there are none.
    """

    def __init__(self, model: str, num_logprobs: int | None, answers: Sequence[ToolAnswer]) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._model = model
        self._num_logprobs = num_logprobs
        self._created = int(time.time())
        self._answers = answers

    def head(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        return self._chunk([self._choice(index, {"role": "assistant", "content": ""}, None, None)])

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        says, reason = self._says(index, delta)
        if not says and self._answers and not delta.logprobs and reason is None:
            return []  # held back
        found = [self._choice(index, one, None, None) for one in says or [{}]]
        found[0]["logprobs"] = self._logprobs(delta.token_ids, delta.logprobs or [])
        found[-1]["finish_reason"] = reason
        return [self._chunk([choice]) for choice in found]

    def _says(self, index: int, delta: Delta) -> tuple[list[dict[str, Any]], str | None]:
        """(the `delta` of each chunk, finish reason)."""
        reason = delta.finish_reason
        if not self._answers:
            return [{"content": delta.text}] if delta.text else [], reason
        answer = self._answers[index]
        return answer.deltas(delta.text, has_ended=reason is not None), answer.finish_reason(reason)

    def tail(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": usage}

    def whole(self, prompts: Sequence[Prompt], choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        found = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._envelope("chat.completion", found), "usage": usage}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text, reason = "".join(choice.text), choice.finish_reason
        says: dict[str, Any] = {"content": text}
        if self._answers:
            answer = self._answers[index]
            says, reason = answer.message(text), answer.finish_reason(reason)
        return {
            "index": index,
            "message": {"role": "assistant", "refusal": None, **says},
            "logprobs": self._logprobs(choice.token_ids, choice.logprobs),
            "finish_reason": reason,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope("chat.completion.chunk", choices)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _choice(self, index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, token_ids: Sequence[int], logprobs: Sequence[list[Candidate]]) -> dict[str, Any] | None:
        if self._num_logprobs is None:
            return None
        content = [self._position(token, candidates) for token, candidates in zip(token_ids, logprobs)]
        return {"content": content, "refusal": None}

    def _position(self, token: int, candidates: Sequence[Candidate]) -> dict[str, Any]:
        chosen = next(c for c in candidates if c.token_id == token)
        top = [_token(c) for c in candidates if c.rank is not None and c.rank <= (self._num_logprobs or 0)]
        return {**_token(chosen), "top_logprobs": top}


def _token(candidate: Candidate) -> dict[str, Any]:
    text = candidate.text
    return {"token": text, "logprob": bounded(candidate.logprob), "bytes": list(text.encode())}


def _num_logprobs(body: ChatBody) -> Any:
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidRequestError("top_logprobs", message="top_logprobs needs logprobs=true")
        return None
    return 0 if body.top_logprobs is None else body.top_logprobs
