"""What the text files of a model folder say: chat templates, and the tokens that end an output."""

import json
import shutil
from pathlib import Path

import pytest

from runtime import LLM, SamplingParams
from runtime.config import BUILTIN_MODEL
from runtime.errors import InvalidRequestError, ModelFormatError
from runtime.tokenizer import Tokenizer, read_eos_token_ids

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tiny_llama, tmp_path):
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def write(folder, name, **entries):
    (folder / name).write_text(json.dumps(entries))


@pytest.mark.parametrize(
    "generation, config, ids",
    [
        ({"eos_token_id": [7, 1, 7]}, {"eos_token_id": 2}, [7, 1]),
        ({"eos_token_id": 7}, {"eos_token_id": 2}, [7]),
        ({}, {"eos_token_id": [2, 3]}, [2, 3]),
        ({"eos_token_id": None}, {"eos_token_id": 2}, [2]),
        ({}, {}, []),
    ],
)
def test_eos_ids_are_generation_configs_else_configs(tmp_path, generation, config, ids):
    write(tmp_path, "config.json", **config)
    write(tmp_path, "generation_config.json", **generation)
    assert read_eos_token_ids(tmp_path) == ids


@pytest.mark.parametrize("value", ["</s>", [1, "</s>"], -1, True, 1.5])
def test_eos_ids_that_are_none_are_refused(tmp_path, value):
    write(tmp_path, "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelFormatError, match="generation_config.json: eos_token_id=.*a token id or a list"):
        read_eos_token_ids(tmp_path)


def test_each_of_several_eos_ids_ends_an_output(folder):
    write(folder, "generation_config.json", eos_token_id=[1, 7])
    with LLM(str(folder)) as llm:
        for token in (1, 7):
            params = SamplingParams(temperature=0.0, max_tokens=9, logit_bias={token: 100.0})
            out = llm.generate("the", params)[0].outputs[0]
            assert (out.token_ids, out.finish_reason, out.stop_reason) == ([token], "stop", None)


def test_a_template_file_comes_before_tokenizer_configs(folder):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert Tokenizer(folder).apply_chat_template(MESSAGES, add_generation_prompt=False) == "[hi]"


def test_of_several_named_templates_the_default_is_taken(folder):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ eos_token }}yes"}]
    write(folder, "tokenizer_config.json", chat_template=named, eos_token={"content": "<eos>"})
    assert Tokenizer(folder).apply_chat_template(MESSAGES) == "<eos>yes"


@pytest.mark.parametrize("num_chars", [9, 100_000, 3_000_000])
def test_a_text_of_too_many_tokens_is_refused(num_chars):
    """Long ones before they are all tokens; the built-in model's are one a letter here, and one that begins."""
    tokenizer = Tokenizer(BUILTIN_MODEL)
    assert len(tokenizer.encode("x" * 9, max_tokens=10)) == 10
    with pytest.raises(InvalidRequestError, match="tokens: must be at most 9 tokens"):
        tokenizer.encode("x" * num_chars, max_tokens=9)


def test_a_long_text_that_fits_is_not_refused():
    tokenizer = Tokenizer(BUILTIN_MODEL)
    text = "def add(a, b):\n    return a + b\n" * 10_000
    expected = tokenizer.encode(text)
    assert tokenizer.encode(text, max_tokens=len(expected)) == expected
    with pytest.raises(InvalidRequestError, match=f"a prompt of {len(expected)} tokens"):
        tokenizer.encode(text, max_tokens=len(expected) - 1)


def test_many_tokens_decode_as_few_do():
    tokenizer = Tokenizer(BUILTIN_MODEL)
    text = "12+35=47 é " * 2000
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(token_ids) > 10_000
    assert tokenizer.decode(token_ids) == text
    special = [i for i in range(tokenizer.vocab_size) if not tokenizer.decode([i])][:1]
    assert tokenizer.decode(token_ids + special) == text
    shown = tokenizer.decode(special, skip_special_tokens=False)
    assert shown and tokenizer.decode(token_ids + special, skip_special_tokens=False) == text + shown


def test_a_text_that_is_far_too_long_is_refused_at_its_beginning(monkeypatch):
    tokenizer, sizes = Tokenizer(BUILTIN_MODEL), []
    encode = tokenizer._encode

    def counted(text, **options):
        sizes.append(len(text))
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "_encode", counted)
    with pytest.raises(InvalidRequestError, match="a prompt of more than [0-9]+ tokens: must be at most 9 tokens"):
        tokenizer.encode("12+35=" * 500_000, max_tokens=9)
    assert sum(sizes) < 500_000


def test_what_the_file_says_of_truncation_and_padding_does_not_count(folder):
    whole = Tokenizer(folder).encode("the quick brown fox")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    write(folder, "tokenizer.json", **content)
    assert Tokenizer(folder).encode("the quick brown fox") == whole and 2 < len(whole) < 64
