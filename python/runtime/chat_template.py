"""Chat templates: messages to prompt text, rendered as `transformers` renders them.

A template comes with a model folder and is a program, so it runs in jinja2's immutable sandbox, in a child process
with little memory, and that process is killed when it takes too long.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import Error, InvalidRequestError, ModelFormatError
from runtime.line_process import LineProcess

MAX_TEMPLATE_CHARS = 1 << 20
MAX_OUTPUT_CHARS = 8 << 20
TIMEOUT_S = 5.0

_SCRIPT = Path(__file__).with_name("chat_template_worker.py")

Message = Mapping[str, Any]

_PROBE = "runtime_probe"


class ChatTemplate:
    """A compiled-on-first-use template; safe to call from any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFormatError(f"the chat template has {len(source)} characters; the limit is {MAX_TEMPLATE_CHARS}")
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._worker: LineProcess | None = None
        self._shows_tools: bool | None = None

    def shows_tools(self) -> bool:
        """Whether prompts hold the tools that are given: one is rendered to see, once."""
        if self._shows_tools is None:
            schema = {"type": "object", "properties": {}, "required": []}
            function = {"name": _PROBE, "description": "", "parameters": schema}
            probe = {"type": "function", "function": function}
            try:
                self._shows_tools = _PROBE in self.render([{"role": "user", "content": ""}], tools=[probe])
            except Error:  # another conversation may be to its liking
                self._shows_tools = "tools" in self.source
        return self._shows_tools

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Raises:
            InvalidRequestError: the messages are not a conversation, or the template refuses them.
            ModelFormatError: the template is not valid, takes longer than `timeout_s` or writes too much.
        """
        check_messages(messages)
        if "tool_calls" not in self.source and any(message.get("tool_calls") for message in messages):
            raise InvalidRequestError("messages", message="messages: this model's chat template leaves tool_calls out")
        names = {
            **self._special_tokens,
            **variables,
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            request = json.dumps({"template": self.source, "variables": names})
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(
                "messages", messages, message=f"messages must be plain JSON values: {error}"
            ) from None
        with self._lock:
            return self._ask(request)

    def close(self) -> None:
        """Ends the process, if there is one; the next `render` starts another."""
        with self._lock:
            self._stop_worker()

    def _ask(self, request: str) -> str:
        if self._worker is None:
            self._worker = LineProcess(_SCRIPT)
        answer = self._worker.ask(request, self._timeout_s)
        if answer is None:
            self._stop_worker()
            raise ModelFormatError(f"the chat template did not finish within {self._timeout_s} s and little memory")
        if "text" in answer:
            return str(answer["text"])
        if answer["kind"] == "refused":
            raise InvalidRequestError("messages", message=f"the chat template refuses the messages: {answer['error']}")
        raise ModelFormatError(f"the chat template is not valid: {answer['error']}")

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def check_messages(messages: object) -> None:
    """A conversation is a non-empty list of objects that each have a role."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequestError("messages", messages, "a list of {'role': ..., 'content': ...}")
    if not messages:
        raise InvalidRequestError("messages", messages, "at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(
                f"messages[{i}]", message, "an object with a role, such as {'role': 'user', 'content': ...}"
            )
