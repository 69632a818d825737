"""What is run before an engine is ready: every kernel that serving can meet, and memory for every step."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import LLM, SamplingParams
from runtime.config import EngineConfig
from runtime.engine import Knobs
from runtime.engine.device import stated_device
from runtime.engine.device_bytes import DeviceBytes
from runtime.engine.memory_needs import meta_model, run_step
from runtime.engine.model_runner import ModelRunner
from runtime.engine.warm_up import warm_up_steps

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "docs" / "benchmarks" / "configs"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
BLOOM = {"model_type": "bloom", "hidden_size": 128, "n_head": 2, "n_layer": 2, "vocab_size": 512}


class WarmedRunner(ModelRunner):
    """Warms up on the CPU too, where nothing would need it."""

    def warm_up(self):
        for step in warm_up_steps(self.max_num_seqs, self.max_num_batched_tokens, with_decode=True):
            self.run_padding(step)


@pytest.mark.parametrize("mode", ["default", "deterministic"])
@pytest.mark.parametrize("config", [LLAMA, BLOOM], ids=["llama", "bloom"])
def test_serving_compiles_nothing_that_the_warm_up_did_not(tmp_path, config, mode):
    pytest.importorskip("triton")
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, str(HERE / "warm_up_keys.py"), str(tmp_path), mode]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and "kernels are warm" in found.stderr, found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-3.1-8b"])
def test_serving_asks_the_driver_for_no_memory_after_the_warm_up(name):
    config = EngineConfig(model=CONFIGS / name, load_format="dummy").for_device("cuda")
    model = meta_model(config, stated_device("NVIDIA H200", None))
    counted, rng = DeviceBytes(), random.Random(0)
    for step in warm_up_steps(256, 8192, with_decode=False):
        run_step(model, step.num_rows, step.num_tokens, counted, is_prefill=True)
    reserved = counted.allocator.reserved
    for _ in range(60):
        num_tokens = rng.choice([rng.randint(1, 600), rng.randint(1, 8192), 8192])
        run_step(model, rng.randint(1, min(num_tokens, 256)), num_tokens, counted, is_prefill=True)
    assert counted.allocator.reserved == reserved


@pytest.mark.parametrize("limits", [(1, 1), (3, 2), (9, 40), (256, 8192), (300, 700)])
def test_no_step_passes_the_limits(limits):
    max_num_seqs, max_num_tokens = limits
    steps = warm_up_steps(max_num_seqs, max_num_tokens, with_decode=True)
    assert all(1 <= step.num_rows <= min(step.num_tokens, max_num_seqs) for step in steps)
    assert max(step.num_tokens for step in steps) == steps[0].num_tokens == max_num_tokens
    assert all(step.max_new_tokens >= 1 for step in steps)


def test_a_warmed_engine_answers_the_same(tiny_llama):
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=1, presence_penalty=0.3, logprobs=2, max_tokens=12)
    arguments = {"max_num_seqs": 4, "max_num_batched_tokens": 40, "num_kv_blocks": 64}
    with LLM(str(tiny_llama), **arguments) as llm:
        expected = [out.outputs for out in llm.generate(["the fox", "a"], params)]
    with LLM._with_knobs(Knobs(runner_class=WarmedRunner), str(tiny_llama), **arguments) as llm:
        assert [out.outputs for out in llm.generate(["the fox", "a"], params)] == expected
