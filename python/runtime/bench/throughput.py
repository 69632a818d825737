"""Offline throughput: all requests are there at the start, the last token ends the clock."""

from __future__ import annotations

import statistics
import time
from typing import Any

from runtime.bench.limits import offline_s, on_paper
from runtime.bench.report import device_name
from runtime.bench.scenarios import Offline, offline_prompts, sampled
from runtime.llm import LLM


def run_once(llm: LLM, scenario: Offline) -> float:
    """Seconds from the first submission to the last token; prompts are made before."""
    prompts = offline_prompts(scenario.requests, llm.vocab_size)
    params = [sampled(one.output_len, scenario.temperature) for one in scenario.requests]
    llm.reset_prefix_cache()
    since = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - since


def measure(llm: LLM, scenario: Offline, repeat: int = 3) -> dict[str, Any]:
    """Seconds, and tokens per second as the scenario counts them: the median of `repeat` runs after one to warm up."""
    times = [run_once(llm, scenario) for _ in range(repeat + 1)][1:]
    seconds = statistics.median(times)
    tok_s = scenario.num_tokens() / seconds
    row = {"dtype": llm.dtype, "s": round(seconds, 4), "tok_s": round(tok_s, 1), "counted": scenario.counted}
    limit_s = offline_s(on_paper(llm.config.model_dir), scenario, device_name(llm.device))
    if limit_s is not None:
        row |= {"limit": round(scenario.num_tokens() / limit_s, 1), "pct_of_limit": round(100 * limit_s / seconds, 1)}
    return row


def fit(scenario: Offline) -> dict[str, int]:
    """Arguments of an LLM that serves the scenario."""
    return {"max_num_seqs": min(256, len(scenario.requests)), "max_model_len": scenario.longest}
