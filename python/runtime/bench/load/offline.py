"""The requests of a load run without HTTP: `LLM.generate` in a process of its own, which frees the device at its end.

`python -m runtime.bench.load.offline` reads a JSON object from standard input and prints one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from runtime.bench.load.generator import Target
from runtime.bench.load.plan import LoadRequest, Plan
from runtime.errors import EngineDeadError


def measure(arguments: Mapping[str, Any], plan: Plan, target: Target, seed: int) -> dict[str, Any]:
    """Seconds and output tokens of the plan's requests, all there at the start, after one run that warms up.

    Args:
        arguments: of `LLM`.

    Raises:
        EngineDeadError: the process failed, which has said why on standard error.
    """
    asked = {
        "arguments": dict(arguments),
        "requests": [vars(one) for one in plan.requests],
        "temperature": plan.temperature,
        "ignore_eos": target.ignore_eos,
        "vocab_size": target.vocab_size,
        "seed": seed,
    }
    done = subprocess.run(
        [sys.executable, "-m", "runtime.bench.load.offline"], input=json.dumps(asked), stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise EngineDeadError(f"the offline run ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(asked: Mapping[str, Any]) -> dict[str, Any]:
    from runtime.llm import LLM
    from runtime.sampling_params import SamplingParams

    requests = [LoadRequest(**one) for one in asked["requests"]]
    common: dict[str, Any] = {name: asked[name] for name in ("ignore_eos", "temperature")}
    common["detokenize"] = not asked["arguments"].get("skip_tokenizer_init")  # as the server does
    params = [SamplingParams(max_tokens=one.output_len, **common) for one in requests]
    prompts = [one.prompt(asked["seed"], asked["vocab_size"]) for one in requests]
    seconds, num_tokens = 0.0, 0
    with LLM(**asked["arguments"]) as llm:
        for _ in range(2):
            llm.reset_prefix_cache()
            since = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - since
            num_tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    return {"s": seconds, "output_tokens": num_tokens}


def main() -> int:
    from runtime.errors import Error

    try:
        print(json.dumps(_run(json.load(sys.stdin))))
    except Error as error:
        print(f"runtime: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
