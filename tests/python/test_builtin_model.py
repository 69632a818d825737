"""The built-in model: held-out questions are marked, however their requests are batched; its files are as trained."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from runtime import LLM, SamplingParams
from runtime.basemodel import load_model
from runtime.config import BUILTIN_MODEL
from runtime.engine import Knobs

TOOL = Path(__file__).resolve().parents[2] / "tools" / "builtin_model"
EOS, END = 1, 5
MIN_SHARE = 0.98
# room for the longest answer, a function of 49 tokens, and what ends it
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, logprobs=2)
SAMPLED = [SamplingParams(temperature=1.0, seed=seed, max_tokens=32, ignore_eos=True, logprobs=2) for seed in range(3)]


@dataclass(frozen=True)
class Way:
    """One way to run the same requests."""

    name: str
    arguments: dict
    knobs: Knobs = Knobs()
    preempts: bool = False

    def run(self, prompts, params, *, deterministic):
        arguments = {"max_num_seqs": 32, **self.arguments, "deterministic": deterministic}
        with LLM._with_knobs(self.knobs, **arguments) as llm:
            return llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)


TWO_STEPS = Knobs(num_steps_in_flight=2)
PLAIN = Way("batch 32", {})
WAYS = [
    Way("batch 1", {"max_num_seqs": 1}),
    Way("no prefix caching", {"enable_prefix_caching": False}),
    Way("chunked prefill", {"max_num_batched_tokens": 40}),
    Way("preemption", {}, Knobs(preempt_every=2), preempts=True),
    Way("two steps in flight", {}, TWO_STEPS),
    Way(
        "few blocks",
        {"block_size": 1, "num_kv_blocks": 448, "max_model_len": 448, "admission": "none"},
        TWO_STEPS,
        preempts=True,
    ),
    Way(
        "chunks and preemption without a cache",
        {"max_num_batched_tokens": 24, "max_num_seqs": 16, "block_size": 4, "enable_prefix_caching": False},
        Knobs(preempt_every=5, num_steps_in_flight=2),
        preempts=True,
    ),
]


@pytest.fixture(scope="module")
def tool():
    """The modules of the training tool; they import each other by these plain names."""
    names = ("data", "model", "questions", "texts", "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOL))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def llm():
    with LLM() as llm:
        yield llm


@dataclass(frozen=True)
class Exam:
    skills: list[str]
    prompts: list[list[int]]
    answers: list[str]

    def shares(self, outputs):
        """Skill -> share of right answers."""
        marks = {}
        for skill, answer, output in zip(self.skills, self.answers, outputs):
            marks.setdefault(skill, []).append(output.outputs[0].text == answer)
        return {skill: sum(found) / len(found) for skill, found in marks.items()}

    def share(self, outputs):
        return sum(out.outputs[0].text == answer for answer, out in zip(self.answers, outputs)) / len(self.answers)


@pytest.fixture(scope="module")
def make_exam(tool, llm):
    """Held-out questions of every skill, asked in four ways in turn; many share the start of their prompt."""

    def make(count):
        asked = [
            (skill, question) for skill in tool.questions.SKILLS for question in tool.questions.held_out(skill, count)
        ]
        pairs = [_ask(question, index, tool.questions, llm) for index, (_, question) in enumerate(asked)]
        prompts, answers = zip(*pairs)
        return Exam([skill for skill, _ in asked], list(prompts), list(answers))

    return make


def _ask(question, index, questions, llm):
    """(prompt ids, right answer): as a line, in another form, in a chat, or after other questions."""
    rng, way = Random(index), index % 4
    if way == 2:
        ids = llm.encode_chat([{"role": "user", "content": rng.choice(question.chats)}])[1]
        return ids, question.answer
    prompt, answer = question.completions[rng.randrange(len(question.completions)) if way == 1 else 0]
    before = _solved(questions, 24 if index % 28 == 3 else 6) if way == 3 else ""
    return llm.tokenizer.encode(before + prompt), answer


def _solved(questions, count):
    """Lines such as 12+35=47; those of a smaller count begin those of a larger one."""
    rng, skills = Random(0), tuple(questions.SKILLS)
    solved = [questions.training(rng.choice(skills), rng).completions[0] for _ in range(count)]
    return "".join(f"{prompt}{answer}\n" for prompt, answer in solved)


def test_every_skill_is_mastered(make_exam, llm):
    exam = make_exam(50)
    shares = exam.shares(llm.generate(exam.prompts, GREEDY))
    assert all(share >= MIN_SHARE for share in shares.values()), shares


@pytest.fixture(scope="module")
def exam(make_exam):
    exam = make_exam(8)
    assert max(map(len, exam.prompts)) > 256  # deterministic attention adds up 256 tokens of context at a time
    return exam


@pytest.mark.parametrize("way", [PLAIN, *WAYS], ids=lambda way: way.name)
def test_answers_are_right_however_they_are_batched(exam, way):
    outputs = way.run(exam.prompts, GREEDY, deterministic=False)
    assert exam.share(outputs) >= MIN_SHARE
    check_that_it_happened(way, outputs)


@pytest.fixture(scope="module")
def requests(exam, llm):
    """The exam, and a few sampled texts that go on for longer."""
    prompts = [*exam.prompts, *(llm.tokenizer.encode("Once upon a time") for _ in SAMPLED)]
    return prompts, [*([GREEDY] * len(exam.prompts)), *SAMPLED]


@pytest.fixture(scope="module")
def expected(requests):
    return PLAIN.run(*requests, deterministic=True)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_deterministic_outputs_are_the_same_bit_for_bit(exam, requests, expected, way):
    outputs = way.run(*requests, deterministic=True)
    differing = [i for i, (out, same) in enumerate(zip(outputs, expected)) if out.outputs != same.outputs]
    assert not differing
    assert all(len(out.outputs[0].logprobs) == len(out.outputs[0].token_ids) > 0 for out in outputs)
    assert exam.share(outputs) >= MIN_SHARE
    check_that_it_happened(way, outputs)


def check_that_it_happened(way, outputs):
    cached = sum(out.num_cached_tokens for out in outputs)
    assert (cached > 0) == way.arguments.get("enable_prefix_caching", True)
    preemptions = sum(out.metrics.preemptions for out in outputs)
    assert (preemptions > 0) == way.preempts


# ---- endings, chat, tokenizer ---------------------------------------------------------------


def test_eos_ends_a_completion_and_end_a_chat(llm):
    (completion,) = llm.generate("12+35=", GREEDY)
    (chat,) = llm.chat([{"role": "user", "content": "What is 12+35?"}], GREEDY)
    for output, last in ((completion, EOS), (chat, END)):
        one = output.outputs[0]
        assert (one.text, one.finish_reason, one.stop_reason) == ("47", "stop", None)
        assert one.token_ids[-1] == last
    assert [llm.tokenizer.token_to_id(token) for token in ("<eos>", "<|end|>")] == [EOS, END]


def test_the_chat_template_renders_what_training_showed(tool, llm):
    """A row of training is a prefix of the rendered conversation; training packs from the same pieces by hand."""
    packer, tokenizer = tool.data.Packer(), tool.tokenizer.build_tokenizer()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Sort dcba\n"},
        {"role": "assistant", "content": "abcd"},
        {"role": "user", "content": "def add(a, b):"},
    ]
    text, ids = llm.encode_chat(messages)
    assert text == "<bos><|system|>Be brief.<|end|><|user|>Sort dcba<|end|><|assistant|>abcd<|end|>" + (
        "<|user|>def add(a, b):<|end|><|assistant|>"
    )
    assert llm.encode_chat(messages, add_generation_prompt=False)[0] == text.removesuffix("<|assistant|>")
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    tokens, _ = packer.batch(seed=0, index=0, num_rows=8, row_len=512)
    chats = [row for row in tokens.tolist() for row in _conversations(row, tokenizer)]
    assert len(chats) > 8
    for row in chats:
        assert llm.encode_chat(_parse(tokenizer.decode(row, skip_special_tokens=False)))[1] == row


def _conversations(row, tokenizer):
    """The whole conversations of a packed row, each up to the last <|assistant|>."""
    bos, assistant, user = (tokenizer.token_to_id(token) for token in ("<bos>", "<|assistant|>", "<|user|>"))
    starts = [i for i, token in enumerate(row) if token == bos] + [len(row)]
    for start, end in zip(starts, starts[1:]):
        part = row[start:end]
        if user in part and assistant in part:
            yield part[: len(part) - part[::-1].index(assistant)]


def _parse(text):
    messages = [part.split("|>", 1) for part in text.removeprefix("<bos><|").split("<|end|><|")]
    return [{"role": role, "content": content} for role, content in messages if content]


ODD_TEXTS = [
    "Grüße, 世界! 👩🏽‍🚀",
    "a\u0301 e\u0301\u200b",
    "\x00\x01\x7f\u0085",
    "\ufeff\u2028\u2029",
    "  \t\r\n \n    x ",
    "\U0010ffff",
    "def add(a, b):",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_text_round_trips(llm, text):
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    assert llm.tokenizer.decode(ids) == text
    assert AutoTokenizer.from_pretrained(BUILTIN_MODEL)(text, add_special_tokens=False)["input_ids"] == ids


def test_random_code_points_round_trip(llm):
    rng = Random(0)
    for _ in range(200):
        text = "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(20))
        assert llm.tokenizer.decode(llm.tokenizer.encode(text, add_special_tokens=False)) == text


# ---- files ----------------------------------------------------------------------------------


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in BUILTIN_MODEL.iterdir()) < 8 * 2**20


def test_the_tokenizer_is_the_tools(tool, tmp_path):
    tokenizer = tool.tokenizer.build_tokenizer()
    tool.tokenizer.save_tokenizer(tokenizer, tmp_path, 1024)
    shipped = json.loads((BUILTIN_MODEL / "tokenizer.json").read_text())
    assert shipped["model"]["vocab"] == tokenizer.get_vocab()
    name = "tokenizer_config.json"
    assert json.loads((BUILTIN_MODEL / name).read_text()) == json.loads((tmp_path / name).read_text())


def test_logits_agree_with_the_tool_and_with_transformers(tool, llm):
    ids = torch.tensor(llm.tokenizer.encode("12+35=47\nreverse(held)=dleh\ndef add(a, b):\n    return a + b"))
    runtime = prefix_logits(load_model(BUILTIN_MODEL, max_total_token_num=2048, max_num_seqs=len(ids)), ids)
    assert runtime.std() > 1
    config = json.loads((BUILTIN_MODEL / "config.json").read_text())
    fields = {name: config[name] for name in tool.model.LlamaConfig.__dataclass_fields__}
    trained = tool.model.Llama(tool.model.LlamaConfig(**fields))
    tensors = load_file(BUILTIN_MODEL / "model.safetensors")
    trained.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    with torch.inference_mode():
        torch.testing.assert_close(runtime, trained(ids[None])[0], rtol=0, atol=2e-4)
        transformers = LlamaForCausalLM.from_pretrained(BUILTIN_MODEL, dtype=torch.float32)
        torch.testing.assert_close(runtime, transformers(ids[None]).logits[0], rtol=0, atol=2e-4)


def prefix_logits(model, ids):
    """Logits after every prefix of `ids`, one batch row each."""
    lengths = torch.arange(1, len(ids) + 1, dtype=torch.int32)
    b_loc = torch.zeros(len(ids), math.ceil(len(ids) / model.block_size), dtype=torch.int32)
    model.mem_manager.extend(b_loc, lengths)
    prefixes = torch.cat([ids[:length] for length in lengths]).int()
    starts = lengths.cumsum(0) - lengths
    return model.forward(len(ids), len(prefixes), len(ids), prefixes, b_loc, starts, lengths, True)


# ---- the training tool ----------------------------------------------------------------------


def test_no_held_out_question_is_trained(tool):
    rng = Random(0)
    drawn = [tool.data.question(rng) for _ in range(10000)]
    assert not [question for question in drawn if question.held_out]
    shares = {skill: sum(q.skill == skill for q in drawn) / len(drawn) for skill in tool.questions.SKILLS}
    assert min(shares.values()) > 0.05, shares


def test_the_training_tool_runs(tmp_path):
    options = ["--device", "cpu", "--steps", "2", "--tokens-per-step", "128", "--mark", "0"]
    subprocess.run([sys.executable, TOOL / "train.py", "--out", tmp_path, *options], check=True, timeout=120)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in BUILTIN_MODEL.iterdir())
    assert (tmp_path / "config.json").read_text() == (BUILTIN_MODEL / "config.json").read_text()
    with LLM(str(tmp_path)) as llm:
        assert len(llm.generate("12+35=", SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4
