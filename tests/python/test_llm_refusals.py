"""Prompts, arguments and folders that `LLM` refuses, in words that help."""

import dataclasses
import inspect

import pytest

from runtime import LLM, SamplingParams
from runtime.config import EngineConfig
from runtime.errors import CapacityError, ConfigError, InvalidRequestError, ModelFormatError, ModelNotFoundError


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("", "prompt=.*at least one token"),
        ([384], "384"),
        ([-1], "-1"),
        ([1 << 40], "between 0 and"),
        ([1.5], "text, a list|integers"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"prompt": [1]}, "a text"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "either"),
        ([5] * 256, "256"),
        ([5] * 999, "999"),
        (7, "prompt"),
        ("\ud800", "tokenised"),
    ],
)
def test_bad_prompts_are_refused(llm, prompt, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        llm.submit(prompt, SamplingParams(temperature=0.0, max_tokens=24))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"max_modellen": 5}, "unknown argument 'max_modellen'; did you mean 'max_model_len'"),
        ({"pipeline_parallel_size": 2}, "unknown argument 'pipeline_parallel_size'"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0: must be between 1 and 64; nearest: 1"),
        ({"block_size": 12}, "block_size=12: must be a power of two; nearest: 8"),
        ({"block_size": 0}, "between 1 and"),
        ({"dtype": "fp32"}, "float32"),
        ({"device": "gpu"}, "cpu, cuda"),
        ({"load_format": "pt"}, "safetensors"),
        ({"admission": "past-future"}, "past_future, max_tokens, none; did you mean 'past_future'"),
        ({"admission": "oracle"}, "admission='oracle': must be one of past_future, max_tokens, none"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy='lifo': must be one of fcfs, priority, fair"),
        ({"max_model_len": 257}, "256"),
        ({"max_model_len": 2.5}, "integer"),
        ({"max_num_seqs": 0}, "nearest: 1"),
        ({"gpu_memory_utilization": 1.5}, "at most 1"),
        ({"gpu_memory_utilization": "0.9"}, "must be a number above 0"),
        ({"step_timeout": 0}, "positive number of seconds up to 86400; default: 300 on cpu"),
        ({"step_timeout": "1"}, "step_timeout='1': must be a positive number"),
        ({"event_log": ""}, "event_log='': must be the path of a file"),
        ({"num_kv_blocks": 4, "kv_cache_memory_bytes": 4}, "one of them"),
        ({"deterministic": 1}, "True or False"),
        ({"seed": -1}, "nearest: 0"),
        ({"log_level": "loud"}, "log_level='loud': must be one of debug, info"),
        ({"log_level": 5}, "log_level=5: must be one of"),
        ({"tokenizer": 5}, "tokenizer=5: must be the path"),
    ],
)
def test_bad_arguments_are_refused(tiny_llama, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LLM(str(tiny_llama), **arguments)


def test_the_signature_has_every_argument_and_its_default():
    parameters = list(inspect.signature(LLM).parameters.values())[:-1]  # the last one takes unknown names
    given = {one.name: one.default for one in parameters}
    assert given == {field.name: field.default for field in dataclasses.fields(EngineConfig)}


def test_a_pool_that_is_too_small(tiny_llama):
    with pytest.raises(CapacityError, match="max_model_len=200 needs 13 KV blocks.*nearest: 128"):
        LLM(str(tiny_llama), num_kv_blocks=8, max_model_len=200)
    with pytest.raises(CapacityError, match="kv_cache_memory_bytes"):
        LLM(str(tiny_llama), kv_cache_memory_bytes=1000)
    with LLM(str(tiny_llama), num_kv_blocks=8) as llm:
        assert llm.max_model_len == 128


def test_bad_folders_are_refused(tiny_llama, tmp_path):
    with pytest.raises(ModelNotFoundError, match="did you mean .*tiny-llama"):
        LLM(str(tiny_llama.parent / "tiny-lama"))
    with pytest.raises(ModelFormatError, match="config.json"):
        LLM(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(ModelFormatError, match="known: .*llama"):
        LLM(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(tiny_llama, make_tokenizer, tmp_path):
    make_tokenizer(tmp_path, vocab_size=500)
    with pytest.raises(ModelFormatError, match="knows 500 tokens, but the model's vocabulary has 384"):
        LLM(str(tiny_llama), tokenizer=str(tmp_path))
