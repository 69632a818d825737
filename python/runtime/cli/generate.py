"""Complete a prompt, given with -p or on standard input."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.cli.parser import (
    add_engine_arguments,
    add_model_argument,
    add_sampling_arguments,
    engine_arguments,
    sampling_params,
)
from runtime.errors import ConfigError, InvalidRequestError
from runtime.structured_outputs import MAX_JSON_CHARS

if TYPE_CHECKING:
    from runtime.llm import LLM
    from runtime.outputs import Logprob, RequestOutput
    from runtime.sampling_params import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "-p", "--prompt", action="append", metavar="TEXT", help="may be repeated; default: standard input"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt")
    parser.add_argument("--json-schema", metavar="FILE", help="the output is JSON of the schema in this file")
    parser.add_argument("--stats", action="store_true", help="the scheduler's counts, on standard error")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    prompts = args.prompt or [_read_stdin()]
    params = sampling_params(args)
    if args.json_schema is not None:
        params = dataclasses.replace(params, structured_outputs={"json": _read_schema(args.json_schema)})
    from runtime.llm import LLM

    with LLM(args.model, **engine_arguments(args)) as llm:
        if len(prompts) == 1 and not args.json:
            outputs = [_stream(llm, prompts[0], params)]
        else:
            outputs = llm.generate(prompts, params)
            for output in outputs:
                print(json.dumps(as_json(output)) if args.json else output.outputs[0].text)
        print(speed_line(outputs), file=sys.stderr)
        if args.stats:
            print(json.dumps(stats_as_json(llm.stats)), file=sys.stderr)
    return 0


def as_json(output: RequestOutput) -> dict[str, Any]:
    """A request as one JSON object."""
    completion = output.outputs[0]
    found: dict[str, Any] = {
        "prompt": output.prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "metrics": dataclasses.asdict(output.metrics),
    }
    if completion.logprobs is not None:
        found["logprobs"] = [_candidates(position) for position in completion.logprobs]
    if output.prompt_logprobs is not None:
        found["prompt_logprobs"] = [None if one is None else _candidates(one) for one in output.prompt_logprobs]
    return found


def _candidates(position: Mapping[int, Logprob]) -> list[dict[str, Any]]:
    return [{"token_id": token, **dataclasses.asdict(logprob)} for token, logprob in position.items()]


def speed_line(outputs: Sequence[RequestOutput]) -> str:
    """Tokens, seconds and tokens per second of requests that ran together."""
    metrics = [output.metrics for output in outputs]
    tokens, prompt_tokens = sum(m.output_tokens for m in metrics), sum(m.prompt_tokens for m in metrics)
    seconds = max(m.arrival + (m.e2e_s or 0.0) for m in metrics) - min(m.arrival for m in metrics)
    first = min((m.ttft_s for m in metrics if m.ttft_s is not None), default=0.0)
    return (
        f"{tokens} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):.1f} tok/s; "
        f"first token after {first * 1e3:.0f} ms; "
        f"prompt {prompt_tokens} tokens, {sum(m.cached_tokens for m in metrics)} cached"
    )


def stats_as_json(stats: object) -> dict[str, Any]:
    """The counts of a SchedulerStats by name."""
    return {name: getattr(stats, name) for name in dir(stats) if name.startswith("num_")}


def _stream(llm: LLM, prompt: str, params: SamplingParams) -> RequestOutput:
    handle = llm.submit(prompt, params)
    try:
        for chunk in handle:
            print(chunk.delta, end="", flush=True)
    except KeyboardInterrupt:
        handle.abort()
        raise
    finally:
        print(flush=True)
    return handle.result()


def _read_schema(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_JSON_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--json-schema {path} cannot be read: {reason}") from None


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise ConfigError("no prompt", hint="give -p TEXT, or pipe the prompt in")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequestError("prompt", message=f"standard input is not text: {error}") from None
