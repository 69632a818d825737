"""The load generator: sends at the scheduled times, whatever has become of what was sent before."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runtime.bench.load.completion_stream import CompletionStream, Outcome
from runtime.bench.load.http_client import Body, HttpClient, TransferError, Url
from runtime.bench.load.plan import LoadRequest, Plan
from runtime.errors import ConfigError, Error

ENDPOINTS = {"completions": "completions", "chat": "chat/completions"}
_CHECK_TIMEOUT_S = 30.0
_HEAD_START_S = 0.05  # between the start of the clock and the first request


@dataclass(frozen=True)
class Target:
    """A server, and how it is asked.

    Args:
        endpoint: a key of ENDPOINTS.
        model: its name there; None: the first one that the server lists.
        headers: of every request.
        ignore_eos: end-of-sequence tokens do not end an output.
        continuous_usage: ask for the tokens of each chunk, in vLLM's words.
        vocab_size: prompts are token ids below it; nearly every vocabulary has 256, most of them single bytes.
        timeout_s: of a whole request.
    """

    url: Url
    endpoint: str = "completions"
    model: str | None = None
    headers: Mapping[str, str] | None = None
    ignore_eos: bool = False
    continuous_usage: bool = True
    vocab_size: int = 256
    timeout_s: float = 600.0

    def body(self, request: LoadRequest, model: str, seed: int, temperature: float) -> bytes:
        options: dict[str, Any] = {"include_usage": True}
        if self.continuous_usage:
            options["continuous_usage_stats"] = True
        asked: dict[str, Any] = {"model": model, "stream": True, "stream_options": options}
        if self.endpoint == "chat":
            asked["messages"] = [{"role": "user", "content": request.text(seed)}]
        else:
            asked["prompt"] = request.prompt(seed, self.vocab_size)
        asked |= {"max_tokens": request.output_len, "temperature": temperature}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        return msgspec.json.encode(asked)


@dataclass(frozen=True)
class LoadRun:
    """What a run saw. Times are `time.perf_counter()`.

    Args:
        seconds: from the start of the clock to the last end.
        cpu_s: of this process meanwhile.
        peak_open: requests that were open at once.
        engine: who serves, as the server says.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    cpu_s: float
    peak_open: int
    engine: str
    model: str


class LoadGenerator:
    """Sends a plan's requests.

    Args:
        progress: called whenever a request has ended.
    """

    def __init__(
        self, target: Target, plan: Plan, *, seed: int = 0, duration_s: float | None = None, progress: Callable[[], Any]
    ) -> None:
        self._target = target
        self._plan = plan
        self._seed = seed
        self._duration_s = duration_s
        self._progress = progress
        self._client = HttpClient(target.url, {"content-type": "application/json", **(target.headers or {})})
        self._model = ""
        self._num_open = 0
        self._peak_open = 0

    async def run(self, warm_up: int) -> LoadRun:
        """
        Args:
            warm_up: requests before the clock starts, all at once.

        Raises:
            ConfigError: nobody is there, it is no such server, or it refuses the first request.
        """
        try:
            self._model, engine = await self._ask_for_model()
            await self._warm_up(warm_up)
            return await self._measure(engine)
        finally:
            self._client.close()

    # ---- before the clock starts ----------------------------------------------------------

    async def _ask_for_model(self) -> tuple[str, str]:
        """(name, owner) of the model that is asked for."""
        url, answer = self._target.url, Body()
        try:
            await self._client.request("GET", "models", b"", answer, _CHECK_TIMEOUT_S)
        except TransferError as error:
            raise ConfigError(f"--base-url={url}: {error}", hint="is the server up?") from None
        if answer.status == 404 and self._target.model is not None:  # not every server lists what it has
            return self._target.model, "unknown"
        if answer.status in (401, 403):
            raise ConfigError(f"{url}/models: status {answer.status}", hint="--api-key-env names the key's variable")
        try:
            listed = msgspec.json.decode(bytes(answer.data))["data"]
            known = {str(one["id"]): str(one.get("owned_by") or "unknown") for one in listed}
        except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            known = {}
        if answer.status != 200 or not known:
            raise ConfigError(
                f"--base-url={url}: {url}/models has no list of models (status {answer.status})",
                hint="must be the URL of an OpenAI-compatible server, with or without /v1",
            )
        return self._choose(known)

    def _choose(self, known: Mapping[str, str]) -> tuple[str, str]:
        name = self._target.model or next(iter(known))
        if name not in known:
            from runtime.errors import did_you_mean

            raise ConfigError(
                f"--model-name={name}: the server has no such model{did_you_mean(name, known)}", hint=", ".join(known)
            )
        return name, known[name]

    async def _warm_up(self, count: int) -> None:
        outcomes = await asyncio.gather(*(self._send_now(one) for one in self._plan.warm_up(count)))
        for outcome in outcomes:
            if outcome.error not in (None, "429"):
                said = f": {outcome.message}" if outcome.message else ""
                raise ConfigError(
                    f"the server does not serve such a request: {outcome.error}{said}",
                    hint="--warmup 0 measures all the same",
                )

    # ---- the clock runs ---------------------------------------------------------------------

    async def _measure(self, engine: str) -> LoadRun:
        gc.collect()
        gc.freeze()  # a collection does not look at what was there before
        self._peak_open = 0
        cpu_s, start = time.process_time(), time.perf_counter() + _HEAD_START_S
        try:
            outcomes = await (self._run_open(start) if self._plan.is_open else self._run_closed(start))
        finally:
            gc.unfreeze()
        ended = max((outcome.ended_at for outcome in outcomes), default=start)
        cpu_s = time.process_time() - cpu_s
        return LoadRun(outcomes, ended - start, cpu_s, self._peak_open, engine, self._model)

    async def _run_open(self, start: float) -> list[Outcome]:
        slots = None if self._plan.concurrency is None else asyncio.Semaphore(self._plan.concurrency)
        tasks = []
        for request in self._plan.requests:
            assert request.at_s is not None
            body, at = self._body(request), start + request.at_s  # made before its time has come
            await _sleep_until(at)
            if slots is not None:
                await slots.acquire()
            task = asyncio.create_task(self._send(request, body, at))
            if slots is not None:
                task.add_done_callback(lambda _: slots.release())
            tasks.append(task)
        return list(await asyncio.gather(*tasks))

    async def _run_closed(self, start: float) -> list[Outcome]:
        """Every client sends its next request when its last one has ended."""
        waiting = iter(self._plan.requests)
        outcomes: list[Outcome] = []
        end = None if self._duration_s is None else start + self._duration_s

        async def client() -> None:
            for request in waiting:
                if end is not None and time.perf_counter() > end:
                    return
                outcomes.append(await self._send_now(request))

        await _sleep_until(start)
        await asyncio.gather(*(client() for _ in range(self._plan.concurrency or 1)))
        return outcomes

    async def _send_now(self, request: LoadRequest) -> Outcome:
        body = self._body(request)
        return await self._send(request, body, time.perf_counter())

    def _body(self, request: LoadRequest) -> bytes:
        return self._target.body(request, self._model, self._seed, self._plan.temperature)

    async def _send(self, request: LoadRequest, body: bytes, scheduled_at: float) -> Outcome:
        outcome = Outcome(scheduled_at, time.perf_counter())
        stream = CompletionStream(outcome)
        self._num_open += 1
        self._peak_open = max(self._peak_open, self._num_open)
        try:
            await self._client.request(
                "POST", ENDPOINTS[self._target.endpoint], body, stream, self._target.timeout_s, _headers(request)
            )
            stream.finish()
        except TransferError as error:
            if outcome.error is None:
                outcome.error, outcome.message = error.kind, str(error)
        finally:
            self._num_open -= 1
        outcome.ended_at = time.perf_counter()
        self._progress()
        return outcome


async def _sleep_until(at: float) -> None:
    delay = at - time.perf_counter()
    # also when late: answers are read between two sends
    await asyncio.sleep(max(delay, 0.0))


def _headers(request: LoadRequest) -> dict[str, str]:
    given = {"x-tenant": request.tenant, "x-priority": request.priority}
    return {name: str(value) for name, value in given.items() if value}


def require_success(run: LoadRun) -> None:
    """
    Raises:
        Error: no request ended as it should.
    """
    if run.outcomes and all(outcome.error is not None for outcome in run.outcomes):
        first = run.outcomes[0]
        raise Error(f"none of {len(run.outcomes)} requests succeeded; the first: {first.error} {first.message}".strip())
