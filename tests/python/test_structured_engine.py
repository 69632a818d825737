"""Answers have the form that was asked for, however they are scheduled, and neighbours notice nothing."""

import contextlib
import json
import os
import random
import re
import signal
import threading
from pathlib import Path

import pytest
from random_schemas import random_object, random_schema
from ranks import stat, wait_until
from schedules import under_each_schedule

from runtime import LLM, SamplingParams, StructuredOutputsParams
from runtime.engine import Knobs
from runtime.engine.grammars import MAX_KNOWN
from runtime.errors import CapacityError, ConfigError, DeadlineExceeded, InvalidRequestError

jsonschema = pytest.importorskip("jsonschema")  # of the group `test`; a machine with a GPU may lack it

NUM_SCHEMAS = int(os.environ.get("RUNTIME_TEST_SCHEMAS", "50"))
PROMPT = [17, 18, 19, 20, 21]
SMALL = {"block_size": 4, "num_kv_blocks": 800, "max_model_len": 256, "deterministic": True}


def ask(llm, structure, **params):
    params = {"max_tokens": 120, "seed": 1, **params}
    return llm.generate({"prompt_token_ids": PROMPT}, SamplingParams(structured_outputs=structure, **params))[0]


def check(schema, completion):
    """Whether it stopped; then it is valid."""
    if completion.finish_reason != "stop":
        return False
    jsonschema.Draft202012Validator(schema).validate(json.loads(completion.text))
    return True


def test_finished_answers_satisfy_random_schemas(llm):
    rng = random.Random(7)
    schemas = [random_schema(rng) if i % 3 else random_object(rng) for i in range(NUM_SCHEMAS)]
    params = [
        SamplingParams(structured_outputs={"json": schema}, temperature=1.0, seed=i, max_tokens=200)
        for i, schema in enumerate(schemas)
    ]
    outputs = llm.generate([{"prompt_token_ids": PROMPT}] * len(schemas), params)
    num_finished = sum(check(schema, out.outputs[0]) for schema, out in zip(schemas, outputs))
    assert num_finished >= 0.8 * NUM_SCHEMAS


@pytest.mark.parametrize(
    "structure, form",
    [
        ({"regex": r"[a-z]{3}-\d{4}"}, r"[a-z]{3}-\d{4}"),
        ({"choice": ['say "no"\\', "müß 😀"]}, 'say "no"\\\\|müß 😀'),
        ({"grammar": 'start: "<n>" /[0-9]{1,3}/ "</n>"'}, "<n>[0-9]{1,3}</n>"),
        ({"grammar": 'start: "<t>" %json {"const": [1]} "</t>"'}, r"<t>\s*\[\s*1\s*\]\s*</t>"),
        ({"json": {"const": {"a": [1, "b"]}}, "disable_any_whitespace": True}, r'\{"a":\[1,"b"\]\}'),
    ],
    ids=["regex", "choice", "grammar", "grammar-with-json", "no-whitespace"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_other_forms(llm, structure, form, temperature):
    completion = ask(llm, structure, temperature=temperature).outputs[0]
    assert completion.finish_reason == "stop" and re.fullmatch(form, completion.text), completion.text


def test_any_json_object(llm):
    bias = {llm.tokenizer.token_to_id("}"): 30.0}
    completion = ask(llm, StructuredOutputsParams(json_object=True), logit_bias=bias).outputs[0]
    assert completion.finish_reason == "stop" and isinstance(json.loads(completion.text), dict)


# ---- beside others, and however it is scheduled -------------------------------------------------

# every other one is plain
MIXED = [None if i % 2 else {"json": random_object(random.Random(i), 3)} for i in range(8)]
ALL = range(len(MIXED))


def mixed_params(structures):
    return [
        SamplingParams(
            structured_outputs=structure,
            temperature=(0.0, 1.0)[i // 2 % 2],
            top_p=(1.0, 0.9)[i // 4 % 2],
            seed=i,
            max_tokens=60,
            logprobs=1,
        )
        for i, structure in enumerate(structures)
    ]


def outputs_of(llm, which=ALL):
    prompts = [{"prompt_token_ids": [2 + i, 40, 50 + i, *range(60, 60 + 7 * i)]} for i in which]
    params = mixed_params(MIXED)
    return [
        (c.token_ids, c.finish_reason, [sorted((t, p.logprob) for t, p in one.items()) for one in c.logprobs])
        for out in llm.generate(prompts, [params[i] for i in which])
        for c in out.outputs
    ]


@pytest.fixture(scope="module")
def each_alone(tiny_llama):
    with LLM(str(tiny_llama), **SMALL, enable_prefix_caching=False) as llm:
        return [outputs_of(llm, [i])[0] for i in range(len(MIXED))]


@under_each_schedule
def test_batch_chunks_preemption_and_depth_change_nothing(tiny_llama, each_alone, arguments, knobs):
    with LLM._with_knobs(knobs, str(tiny_llama), **{**SMALL, **arguments}) as llm:
        assert outputs_of(llm) == each_alone
        assert llm.stats.num_running == llm.stats.num_waiting == 0
        assert llm.stats.num_preemptions > 0 or not knobs.preempt_every


def test_two_ranks_answer_as_one(tiny_llama, each_alone):
    with LLM(str(tiny_llama), device="cpu", tensor_parallel_size=2, **SMALL) as llm:
        assert [out[:2] for out in outputs_of(llm)] == [out[:2] for out in each_alone]


@pytest.mark.gpu
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_on_a_gpu_masks_come_in_time_and_neighbours_are_untouched(enforce_eager):
    with LLM(device="cuda", deterministic=True, enforce_eager=enforce_eager, max_num_seqs=16) as llm:
        alone = [outputs_of(llm, [i])[0] for i in ALL]
        assert outputs_of(llm) == alone
        rng = random.Random(3)
        schemas = [random_object(rng) for _ in range(64)]
        params = [SamplingParams(structured_outputs={"json": one}, seed=1, max_tokens=300) for one in schemas]
        outputs = llm.generate(["12+35="] * len(schemas), params)
        assert sum(check(schema, out.outputs[0]) for schema, out in zip(schemas, outputs)) >= 40


# ---- with the other parameters ------------------------------------------------------------------


def test_each_of_n_completions_has_its_own_state(llm):
    out = ask(llm, {"regex": "[a-z]{2,9}[0-9]"}, n=4)
    texts = [completion.text for completion in out.outputs]
    assert len(set(texts)) > 1 and all(re.fullmatch("[a-z]{2,9}[0-9]", text) for text in texts)


def test_max_tokens_and_stop_strings_end_it_before_its_form_is_whole(llm):
    cut = ask(llm, {"regex": "[ab]{50}"}, max_tokens=5).outputs[0]
    assert cut.finish_reason == "length" and re.fullmatch("[ab]{5,}", cut.text)
    stopped = ask(llm, {"regex": "[a-z]{5}END[a-z]{500}"}, stop="END").outputs[0]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "END") and re.fullmatch("[a-z]{5}", stopped.text)


def test_allowed_ids_and_the_grammar_hold_together(llm):
    ids = [llm.tokenizer.token_to_id(letter) for letter in "abc"]
    allowed = [1, *ids]
    assert re.fullmatch("[bc]{6}", ask(llm, {"regex": "[b-z]{6}"}, allowed_token_ids=allowed).outputs[0].text)
    with pytest.raises(InvalidRequestError, match="after 0 tokens no token is allowed by both .* allowed_token_ids"):
        ask(llm, {"regex": "[0-9]+"}, allowed_token_ids=allowed)


def test_a_form_shorter_than_min_tokens_is_an_error(llm):
    assert len(ask(llm, {"regex": "a*"}, min_tokens=9).outputs[0].token_ids) > 9
    with pytest.raises(InvalidRequestError, match="no token is allowed by both the grammar and min_tokens"):
        ask(llm, {"choice": ["a"]}, min_tokens=9)


def test_a_form_that_leaves_no_token_does_not_matter_once_the_request_has_ended(tiny_llama):
    with LLM._with_knobs(Knobs(num_steps_in_flight=2), str(tiny_llama), **SMALL) as llm:
        a, b = (llm.tokenizer.token_to_id(letter) for letter in "ab")
        stopped = ask(llm, {"regex": "ab"}, allowed_token_ids=[a, b], stop_token_ids=[b]).outputs[0]
        assert (stopped.finish_reason, stopped.token_ids) == ("stop", [a, b])
        ended = ask(llm, {"regex": "ab"}, allowed_token_ids=[a, b], stop="b", include_stop_str_in_output=True)
        assert (ended.outputs[0].finish_reason, ended.outputs[0].text) == ("stop", "ab")


def test_masks_found_side_by_side_are_the_same(tiny_llama, each_alone, monkeypatch):
    monkeypatch.setattr("runtime.engine.masks.MIN_PARALLEL", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with LLM(str(tiny_llama), **SMALL) as llm:
        assert outputs_of(llm) == each_alone
        with pytest.raises(InvalidRequestError, match="allowed_token_ids"):
            ask(llm, {"regex": "[0-9]+"}, n=3, allowed_token_ids=[1])


# ---- what a grammar may do to the engine --------------------------------------------------------

HOSTILE = {
    "parentheses": {"regex": "(" * 4000 + ")" * 4000},
    "unfinished": {"regex": "a("},
    "repetition": {"regex": "x{1000000}"},
    "nested repetition": {"regex": "((x{100}){100}){100}"},
    "not a schema": {"json": {"type": "bogus"}},
    "nothing satisfies it": {"json": {"type": "integer", "minimum": 3, "maximum": 2}},
    "elsewhere": {"json": {"$ref": "http://example.com/schema.json"}},
    "unfinished grammar": {"grammar": "start: ("},
    "deep grammar": {"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "endless to compile": {"grammar": "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(300))},
}


def test_a_bad_grammar_ends_its_own_request(llm):
    neighbour = llm.submit({"prompt_token_ids": PROMPT}, SamplingParams(max_tokens=200, ignore_eos=True))
    for name, structure in HOSTILE.items():
        with pytest.raises((InvalidRequestError, CapacityError), match="structured_outputs|no core was free") as caught:
            ask(llm, structure)
            pytest.fail(name)
        assert len(str(caught.value)) < 400
    assert len(neighbour.result(timeout=60).outputs[0].token_ids) == 200
    assert ask(llm, {"choice": ["well"]}).outputs[0].text == "well"


def test_more_grammars_than_are_kept(llm):
    count = MAX_KNOWN + 40
    params = [SamplingParams(structured_outputs={"choice": [f"w{i}"]}, max_tokens=9) for i in range(count)]
    outputs = llm.generate([{"prompt_token_ids": PROMPT}] * count, params)
    assert [out.outputs[0].text for out in outputs] == [f"w{i}" for i in range(count)]


def test_abort_and_deadline_while_a_grammar_is_compiled(llm):
    params = SamplingParams(structured_outputs={"regex": "[a-z]{90}"}, max_tokens=100)
    handles = [llm.submit({"prompt_token_ids": PROMPT}, params) for _ in range(20)]
    for handle in handles:
        handle.abort()
    assert {handle.result(timeout=60).outputs[0].finish_reason for handle in handles} <= {"abort", "stop"}
    late = llm.submit({"prompt_token_ids": PROMPT}, params, deadline_s=1e-6)
    with pytest.raises(DeadlineExceeded):
        late.result(timeout=60)
    assert llm._engine._outputs.num_live == 0


def test_closing_ends_what_waits_for_a_grammar(tiny_llama):
    before = set(threading.enumerate())
    with LLM(str(tiny_llama), num_kv_blocks=64, block_size=4) as llm:
        params = SamplingParams(structured_outputs={"regex": "[a-z]{90}"}, max_tokens=100)
        handles = [llm.submit({"prompt_token_ids": PROMPT}, params) for _ in range(50)]
    assert all(handle.done for handle in handles)
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("runtime-grammars")]


def test_without_the_library_or_a_tokenizer_the_error_says_what_to_do(tiny_llama, monkeypatch):
    with LLM(str(tiny_llama), num_kv_blocks=64, skip_tokenizer_init=True) as llm:
        with pytest.raises(ConfigError, match="skip_tokenizer_init"):
            ask(llm, {"regex": "a"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with LLM(str(tiny_llama), num_kv_blocks=64) as llm:
        with pytest.raises(ConfigError, match=r"pip install 'runtime-llm\[structured\]'"):
            ask(llm, {"regex": "a"})
        assert llm.generate({"prompt_token_ids": PROMPT})[0].finished


def test_the_library_builds_nothing_before_a_form_is_asked_for_and_only_those_wait(tiny_llama, monkeypatch):
    """The builder is held up: what needs no grammar starts and runs meanwhile."""
    llguidance = pytest.importorskip("llguidance")
    has_begun, may_build = threading.Event(), threading.Event()
    build = llguidance.LLTokenizer

    def held(*arguments):
        has_begun.set()
        assert may_build.wait(60)
        return build(*arguments)

    monkeypatch.setattr(llguidance, "LLTokenizer", held)
    with LLM(str(tiny_llama), **SMALL) as llm:
        assert llm.generate({"prompt_token_ids": PROMPT})[0].finished and not has_begun.is_set()
        params = SamplingParams(structured_outputs={"choice": ["well"]}, max_tokens=9)
        waiting = [llm.submit({"prompt_token_ids": PROMPT}, params) for _ in range(3)]
        assert has_begun.wait(60)
        assert llm.generate({"prompt_token_ids": PROMPT})[0].finished
        assert not any(handle.done for handle in waiting)
        may_build.set()
        assert {handle.result(timeout=60).outputs[0].text for handle in waiting} == {"well"}


def test_a_tokenizer_that_the_library_cannot_use_is_the_requests_error(tiny_llama, monkeypatch):
    llguidance = pytest.importorskip("llguidance")

    def refuse(*arguments):
        raise ValueError("no such tokenizer")

    monkeypatch.setattr(llguidance, "LLTokenizer", refuse)
    with LLM(str(tiny_llama), **SMALL) as llm:
        for _ in range(2):
            with pytest.raises(ConfigError, match="cannot be used with this model's tokenizer"):
                ask(llm, {"regex": "a"})
        assert llm.generate({"prompt_token_ids": PROMPT})[0].finished


def workers(besides=frozenset()):
    """Processes that try grammars: those that build, of this process, and the forks of these that try."""
    found = {}
    for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if b"grammar_worker" in Path(f"/proc/{pid}/cmdline").read_bytes() and (fields := stat(pid)):
                found[pid] = int(fields[1])
    builders = {pid for pid, parent in found.items() if parent == os.getpid()} - besides
    return builders, {pid for pid, parent in found.items() if parent in builders}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_fatal_grammar_ends_is_there_again_for_the_next_one(tiny_llama):
    """Its process is lost, and the one that built the tokenizer is not; nor when that happens while it is idle."""
    others, _ = workers()
    with LLM(str(tiny_llama), **SMALL) as llm:
        assert ask(llm, {"choice": ["a"]}).outputs[0].text == "a"
        builders, trying = workers(others)
        assert len(builders) == len(trying) == 1
        with pytest.raises((InvalidRequestError, CapacityError)):
            ask(llm, HOSTILE["endless to compile"])
        assert ask(llm, {"choice": ["b"]}).outputs[0].text == "b"
        found, trying_now = workers(others)
        assert found == builders and trying_now.isdisjoint(trying)
        for process in trying_now:
            os.kill(process, signal.SIGKILL)
        assert wait_until(lambda: workers(others)[1] - trying_now, 10.0)  # a line that it had read would be lost
        assert ask(llm, {"choice": ["c"]}).outputs[0].text == "c"
        assert workers(others)[0] == builders
        for process in builders:
            os.kill(process, signal.SIGKILL)
        assert wait_until(lambda: not workers(others)[0], 10.0)
        assert ask(llm, {"choice": ["d"]}).outputs[0].text == "d"
    assert wait_until(lambda: workers(others) == (set(), set()), 10.0)


def test_a_form_that_is_known_does_not_wait_for_one_that_is_tried(llm):
    """Trials stand still: the process that makes them is stopped."""
    assert ask(llm, {"choice": ["known"]}).outputs[0].text == "known"
    stopped = [process for found in workers() for process in found]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        held = llm.submit({"prompt_token_ids": PROMPT}, SamplingParams(structured_outputs={"regex": "[ab]{5}"}))
        assert ask(llm, {"choice": ["known"]}).outputs[0].text == "known"
        with pytest.raises(CapacityError, match="no core was free"):
            held.result(timeout=60)
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    assert wait_until(lambda: answers(llm, {"regex": "[ab]{5}"}), 30.0)


def answers(llm, structure):
    try:
        return ask(llm, structure).outputs[0].finish_reason == "stop"
    except CapacityError:
        return False


def test_requests_of_the_same_form_do_not_share_what_it_may_cost(llm):
    """The first one uses up all states that a lexer may have; the next one gets as far as it did."""
    many_states = {"regex": "[ab]x{1000000}"}
    allowed = [1, *(llm.tokenizer.token_to_id(letter) for letter in "abx")]

    def num_tokens():
        handle = llm.submit(
            {"prompt_token_ids": PROMPT},
            SamplingParams(structured_outputs=many_states, allowed_token_ids=allowed, max_tokens=120, temperature=0.0),
        )
        with contextlib.suppress(InvalidRequestError):
            handle.result(timeout=60)
        return len(handle.completions[0].token_ids)

    assert len({num_tokens() for _ in range(3)}) == 1
