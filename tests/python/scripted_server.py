"""A server on loopback whose engine answers with texts that a test has written."""

import asyncio
import json
import shutil
import threading
from pathlib import Path

import uvicorn

from runtime.config import BUILTIN_MODEL
from runtime.server.app import make_app
from runtime.server.client import EngineClient
from runtime.server.config import ServerConfig
from runtime.server.messages import Accepted, Answer, Candidate, Delta, Ended, Info, Metrics, Outputs, Query, Submit
from runtime.server.run import bind
from runtime.server.serving import Serving
from runtime.tokenizer import Tokenizer

MODEL = "scripted"


def make_tokenizer(folder, template, *, special=(), **config):
    """The built-in model's, with another chat template and further special tokens and entries of its config."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(Path(BUILTIN_MODEL) / name, folder / name)
    own = json.loads((Path(BUILTIN_MODEL) / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**own, **config, "chat_template": template}))
    tokens = json.loads((folder / "tokenizer.json").read_text())
    first = max(token["id"] for token in tokens["added_tokens"]) + 100_000
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens["added_tokens"] += [{"id": first + i, "content": text, **flags} for i, text in enumerate(special)]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    return Tokenizer(folder)


class ScriptedEngine(EngineClient):
    """Answers each completion with `pieces`, a Delta each, and then with `finish_reason`.

    `submitted` has the prompts' texts, `params` the arguments of their SamplingParams.
    """

    def __init__(self, tokenizer):
        super().__init__()
        self.pieces, self.finish_reason = [], "stop"
        self.submitted, self.params = [], []
        self._tokenizer = tokenizer

    async def start(self):
        self.info = Info(1 << 16, 1 << 20, "cpu", "float32", 60.0, 16, 512, [])

    async def close(self):
        self._is_closing = True

    def _send(self, message):
        loop = asyncio.get_running_loop()
        if isinstance(message, Submit):
            for event in self._events(message):
                loop.call_soon(self._receive, Outputs([event]))
        elif isinstance(message, Query):
            loop.call_soon(self._receive, Answer(message.id, {"busy_s": 0.0}))

    def _events(self, message):
        ids = memoryview(message.prompt_token_ids).cast("i").tolist()
        self.submitted.append(self._tokenizer.decode(ids, skip_special_tokens=False))
        self.params.append(message.params)
        n = message.params.get("n", 1)
        yield Accepted(message.id)
        for index in range(n):
            for i, piece in enumerate(self.pieces):
                reason = self.finish_reason if i == len(self.pieces) - 1 else None
                logprobs = [[Candidate(i, -0.5, 1, piece)]] if "logprobs" in message.params else None
                yield Delta(message.id, index, piece, [i], logprobs, reason)
        yield Ended(message.id, Metrics(0.0, 0.0, 0.0, len(ids), 0, n * len(self.pieces), 0))


class ScriptedServer:
    """`url` answers while the block runs; `engine` is what to script."""

    def __init__(self, tokenizer, **config):
        self._tokenizer = tokenizer
        self._config = ServerConfig(port=0, **config)
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._is_ready.wait(30)
        return self

    def __exit__(self, *exception):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def script(self, *pieces, finish_reason="stop"):
        self.engine.pieces, self.engine.finish_reason = list(pieces), finish_reason

    async def _serve(self):
        self.engine = ScriptedEngine(self._tokenizer)
        await self.engine.start()
        serving = Serving(self.engine, self._tokenizer, self._config, MODEL)
        config = uvicorn.Config(make_app(serving), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        with bind(self._config) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            listener.listen()
            self._is_ready.set()
            await self._server.serve(sockets=[listener])
            await serving.close()
