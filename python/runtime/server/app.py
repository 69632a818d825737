"""The routes, behind the guard."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from runtime import __version__
from runtime.errors import InvalidRequestError
from runtime.prompts import encode_prompt
from runtime.server.chat import create_chat_completion, encode_chat
from runtime.server.completions import create_completion
from runtime.server.guard import Guard
from runtime.server.live import stats
from runtime.server.metrics import CONTENT_TYPE
from runtime.server.page import page_routes
from runtime.server.protocol import ChatBody, Common, read_body
from runtime.server.serving import Serving
from runtime.server.tool_use import ToolUse, read_tools


def make_app(serving: Serving) -> ASGIApp:
    routes = [
        Route("/v1/completions", create_completion, methods=["POST"]),
        Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{model:path}", show_model),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenizer_info),
        Route("/health", health),
        Route("/health/live", live),
        Route("/ready", ready),
        Route("/version", version),
        Route("/metrics", metrics),
        Route("/stats", stats),
        *page_routes(),
    ]
    app: ASGIApp = Router(routes, redirect_slashes=False)
    origins = list(serving.config.allowed_origin)
    if origins:
        app = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return Guard(app, serving)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _serving(request: Request) -> Serving:
    found: Serving = request.app
    return found


# ---- models ---------------------------------------------------------------------------------


async def list_models(request: Request) -> Response:
    return _json({"object": "list", "data": [_model(_serving(request))]})


async def show_model(request: Request) -> Response:
    serving = _serving(request)
    serving.check_model(request.path_params["model"])
    return _json(_model(serving))


def _model(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.model,
        "object": "model",
        "created": serving.created,
        "owned_by": "runtime",
        "max_model_len": serving.engine.info.max_model_len,
    }


# ---- text and tokens, in vLLM's shapes --------------------------------------------------------


# tokens and text are made and written without letting other requests run
_MAX_TEXT_BYTES = 1 << 19
_MAX_DETOKENIZED = 1 << 18


class TokenizeBody(ChatBody, kw_only=True):
    prompt: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


async def tokenize(request: Request) -> Response:
    serving = _serving(request)

    def understand(found: dict[str, Any]) -> tuple[TokenizeBody, ToolUse]:
        body, _, _ = read_body(found, TokenizeBody)
        return body, read_tools(body)

    body, tools = await serving.read_object(request, understand)
    serving.check_model(body.model)
    tokenizer = serving.tokenizer
    if body.messages is not None:
        token_ids = (await encode_chat(serving, body, tools)).token_ids
    elif body.prompt is not None:
        text = body.prompt
        size = len(text.encode("utf-8", "replace"))
        if size > _MAX_TEXT_BYTES:
            limit = f"at most {_MAX_TEXT_BYTES} bytes; send it in parts"
            raise InvalidRequestError("prompt", f"{size} bytes", limit)
        token_ids = await serving.in_thread(lambda: tokenizer.encode(text, add_special_tokens=body.add_special_tokens))
    else:
        raise InvalidRequestError("prompt", None, "a text, unless messages are given")
    texts = await serving.decode_each(token_ids) if body.return_token_strs else None
    found = {"count": len(token_ids), "max_model_len": serving.engine.info.max_model_len, "tokens": token_ids}
    content = await serving.in_thread(lambda: msgspec.json.encode({**found, "token_strs": texts}))
    return Response(content, media_type="application/json")


class DetokenizeBody(Common, kw_only=True):
    tokens: list[int]


async def detokenize(request: Request) -> Response:
    serving = _serving(request)
    body, _, _ = await serving.read_object(request, lambda found: read_body(found, DetokenizeBody))
    serving.check_model(body.model)
    tokenizer, vocab_size = serving.tokenizer, serving.engine.info.vocab_size
    if not body.tokens:
        return _json({"prompt": ""})
    if len(body.tokens) > _MAX_DETOKENIZED:
        limit = f"at most {_MAX_DETOKENIZED} ids; send them in parts"
        raise InvalidRequestError("tokens", f"{len(body.tokens)} ids", limit)

    def decode() -> str:
        _, token_ids = encode_prompt(body.tokens, None)
        largest = max(token_ids)
        if largest >= vocab_size:
            raise InvalidRequestError("tokens", largest, f"token ids between 0 and {vocab_size - 1}", vocab_size - 1)
        return tokenizer.decode(token_ids, skip_special_tokens=False)

    return _json({"prompt": await serving.in_thread(decode)})


async def tokenizer_info(request: Request) -> Response:
    tokenizer = _serving(request).tokenizer
    template = tokenizer.chat_template
    source = None if template is None else template.source
    found = {"tokenizer_class": "PreTrainedTokenizerFast", **_as_texts(tokenizer.config), "chat_template": source}
    return _json(found)


def _as_texts(value: Any) -> Any:
    """A configuration where tokens, which may be objects with flags, are their texts."""
    if isinstance(value, list):
        return [_as_texts(one) for one in value]
    if not isinstance(value, dict):
        return value
    content = value.get("content")
    return content if isinstance(content, str) else {name: _as_texts(one) for name, one in value.items()}


# ---- operation --------------------------------------------------------------------------------


async def health(request: Request) -> Response:
    """200 while the engine makes progress, or has nothing to do."""
    trouble = _serving(request).trouble
    return _json({"status": "ok"} if trouble is None else {"status": "unhealthy", "reason": trouble}, _ok(trouble))


async def live(request: Request) -> Response:
    """200 while this process answers."""
    return _json({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 while requests are taken."""
    serving = _serving(request)
    trouble = "shutting down" if serving.is_draining else serving.trouble
    return _json({"status": "ok"} if trouble is None else {"status": "not ready", "reason": trouble}, _ok(trouble))


def _ok(trouble: str | None) -> int:
    return 200 if trouble is None else 503


async def version(request: Request) -> Response:
    return _json({"version": __version__})


async def metrics(request: Request) -> Response:
    serving = _serving(request)
    await serving.refresh_stats()
    return Response(serving.metrics.exposition(), media_type=CONTENT_TYPE)
