"""The C interface, called from a process that runs Python already: the engine is this interpreter's."""

import ctypes
import ctypes as c
import json
import os
import signal
import sys

import pytest
from c_library import (
    CHUNK,
    NOTHING_YET,
    ON_CHUNK,
    ON_END,
    PLAN,
    STATS,
    Callbacks,
    Chunk,
    Failure,
    Library,
    Prompt,
    config,
    form,
)
from ranks import rank_pids, wait_until
from structured_cases import REFUSED_FORMS

import runtime
from runtime import LLM, SamplingParams
from runtime.basemodel import registry


@pytest.fixture(scope="module")
def lib(libruntime):
    return Library(libruntime)


@pytest.fixture(scope="module")
def engine(lib):
    made = lib("engine_create", config(device="cpu", max_num_seqs=8, num_kv_blocks=256))
    yield made
    lib.lib.runtime_engine_destroy(made)


def test_version(lib):
    assert lib.lib.runtime_version().decode() == runtime.__version__


def test_answers_are_those_of_this_interpreters_engine(lib, engine):
    with LLM(device="cpu", max_num_seqs=8, num_kv_blocks=256) as llm:
        expected = llm.generate("reverse(abcd)=", SamplingParams(temperature=0))[0].outputs[0].text
    request_id = lib("submit", engine, lib.request("reverse(abcd)=", temperature=0.0), None)
    assert lib.read(engine, request_id) == (expected, {"finish": 1, "metrics": True})


def test_optional_fields_and_lists(lib, engine):
    seed, stops = c.c_int64(3), (c.c_char_p * 1)(b"7")
    request = lib.request("12+35=", temperature=0.0, seed=c.pointer(seed), stop=stops, num_stop=1)
    assert lib.read(engine, lib("submit", engine, request, None))[0] == "4"
    token_ids = (c.c_int32 * 2)(5, 6)
    request = lib.request("", temperature=0.0)
    request.prompt = Prompt(None, token_ids, 2)
    assert lib.read(engine, lib("submit", engine, request, None))[1]["metrics"]


def test_bad_words_do_not_come(lib, engine):
    words = (c.c_char_p * 2)(b"47", b"48")
    request = lib.request("12+35=", temperature=0.0, bad_words=words, num_bad_words=2)
    text, last = lib.read(engine, lib("submit", engine, request, None))
    assert text and "47" not in text and last["finish"] == 1
    many = (c.c_char_p * 129)(*[b"x"] * 129)
    request = lib.request("12+35=", bad_words=many, num_bad_words=129)
    with pytest.raises(Failure, match="at most 128 strings; nearest: 128"):
        lib.read(engine, lib("submit", engine, request, None))


SAID_IN_C = {
    "json": (str, dict),
    "regex": str,
    "grammar": str,
    "choice": list,
    "json_object": bool,
    "disable_any_whitespace": bool,
}


def can_be_said_in_c(given: object) -> bool:
    """Also as UTF-8, and a schema as JSON."""
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return False
    return isinstance(given, dict) and all(isinstance(value, SAID_IN_C.get(name, ())) for name, value in given.items())


def test_answers_have_the_form_that_is_asked_for(lib, engine):
    jsonschema = pytest.importorskip("jsonschema")
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    for given in ({"json": schema}, {"json": schema, "disable_any_whitespace": True}):
        request = lib.request("12+35=", temperature=0.0, max_tokens=200)
        request.structured_outputs = c.pointer(form(given))
        text, last = lib.read(engine, lib("submit", engine, request, None))
        assert last["finish"] == 1
        jsonschema.validate(json.loads(text), schema)


IN_C = [case for case in REFUSED_FORMS if can_be_said_in_c(case[0])]


@pytest.mark.parametrize("given, param, words", IN_C, ids=range(len(IN_C)))
def test_a_bad_form_is_refused_as_in_python(lib, engine, given, param, words):
    request = lib.request("12+35=")
    request.structured_outputs = c.pointer(form(given))
    request_id = lib("submit", engine, request, None)
    with pytest.raises(Failure, match=words) as refused:
        lib.read(engine, request_id)
    fields = refused.value.fields
    assert (fields["code"], fields["param"]) == ("invalid_request", param)


def test_polling_and_abort(lib, engine):
    request_id = lib("submit", engine, lib.request("12+35=", ignore_eos=True, max_tokens=-1), None)
    chunk, found = c.POINTER(Chunk)(), NOTHING_YET
    while found == NOTHING_YET:
        found = lib("next", engine, request_id, 0.0, c.byref(chunk))
    assert found == CHUNK
    lib.lib.runtime_chunk_free(chunk)
    lib.lib.runtime_abort(engine, request_id)
    assert lib.read(engine, request_id)[1]["finish"] == 3
    lib.lib.runtime_release(engine, request_id)


def test_callbacks(lib, engine):
    texts, ends = [], []
    callbacks = Callbacks(
        None,
        ON_CHUNK(lambda _, request_id, chunk: texts.append(chunk.contents.text.decode())),
        ON_END(lambda _, request_id, error: ends.append(bool(error))),
    )
    lib("submit", engine, lib.request("12+35=", temperature=0.0), c.byref(callbacks))
    while not ends:
        c.CDLL(None).usleep(1000)
    assert ("".join(texts), ends) == ("47", [False])


def test_score_stats_and_plan(lib, engine):
    scores = (c.c_double * 8)()
    prompt, continuation = Prompt(b"12+35=", None, 0), Prompt(b"47", None, 0)
    count = lib("score", engine, prompt, continuation, scores, 8)
    assert 1 <= count <= 2 and scores[0] < 0
    stats, plan = STATS(), PLAN()
    assert lib("engine_stats", engine, c.byref(stats)) and stats.num_blocks == 256 and stats.num_finished > 0
    assert lib("plan", config(device="cpu", num_kv_blocks=99), c.byref(plan)) and plan.kv_blocks == 99


def test_errors_say_it_all(lib, engine):
    with pytest.raises(Failure) as refused:
        lib("submit", engine, lib.request("a", temperature=3.0), None)
    fields = refused.value.fields
    assert (fields["code"], fields["param"], fields["value"]) == ("invalid_request", "temperature", "3")
    assert fields["suggestion"] == "2"
    with pytest.raises(Failure, match="max_num_seqs") as unknown:
        lib("engine_create", config(max_num_seq=4))
    assert unknown.value.fields["code"] == "config_error"
    with pytest.raises(Failure) as missing:
        lib("next", engine, 10**9, 0.0, c.byref(c.POINTER(Chunk)()))
    assert missing.value.fields["code"] == "invalid_argument"
    lib.lib.runtime_submit(engine, c.byref(lib.request("a", temperature=3.0)), None, None)  # nobody asks for the error


def test_a_wait_with_the_gil_is_refused(lib, engine, libruntime):
    holding = Library(libruntime, ctypes.PyDLL)  # calls without releasing the GIL
    request_id = lib("submit", engine, lib.request("12+35=", ignore_eos=True, max_tokens=-1), None)
    with pytest.raises(Failure, match="holds the GIL"):
        while True:
            holding("next", engine, request_id, 60.0, c.byref(c.POINTER(Chunk)()))
    lib.lib.runtime_release(engine, request_id)


def test_drain(lib):
    made = lib("engine_create", config(device="cpu", max_num_seqs=8, num_kv_blocks=256))
    assert lib("drain", made, 0.0)
    with pytest.raises(Failure, match="drained"):
        lib("submit", made, lib.request("12+35="), None)
    lib.lib.runtime_engine_destroy(made)


class TestRanks:
    """Tensor parallelism: what the C++ suite EngineRanksTest sees of it, in the words of C."""

    @pytest.fixture(autouse=True)
    def no_process_is_left(self):
        yield
        assert wait_until(lambda: not rank_pids(), 5.0)

    @pytest.fixture
    def config_of(self, failing_models, monkeypatch):
        """Configures two ranks of a model whose rank 1 fails."""
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
        monkeypatch.syspath_prepend(failing_models["PYTHONPATH"])
        monkeypatch.delitem(sys.modules, "failing_families", raising=False)
        __import__("failing_families")

        def make(name):
            made = config(device="cpu", num_kv_blocks=256, tensor_parallel_size=2)
            made.model = failing_models[f"TEST_{name.upper()}_MODEL"].encode()
            return made

        return make

    def test_answers_and_a_killed_rank(self, lib):
        with LLM(device="cpu", num_kv_blocks=256, tensor_parallel_size=2) as llm:
            expected = llm.generate("reverse(abcd)=", SamplingParams(temperature=0))[0].outputs[0].text
        made = lib("engine_create", config(device="cpu", num_kv_blocks=256, tensor_parallel_size=2))
        request_id = lib("submit", made, lib.request("reverse(abcd)=", temperature=0.0), None)
        assert lib.read(made, request_id)[0] == expected
        (pid,) = rank_pids()
        request_id = lib("submit", made, lib.request("12+35=", ignore_eos=True, max_tokens=-1), None)
        assert lib("next", made, request_id, -1.0, c.byref(c.POINTER(Chunk)())) == CHUNK
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Failure, match=rf"rank 1 \(process {pid}\) was killed by SIGKILL (in|after) step") as dead:
            lib.read(made, request_id)
        assert dead.value.fields["code"] == "engine_dead"
        lib.lib.runtime_engine_destroy(made)

    def test_the_exception_of_a_rank_is_what_ends_a_request(self, lib, config_of):
        made, ends = lib("engine_create", config_of("raising")), []
        on_end = ON_END(lambda _, request_id, error: ends.append((error.contents.code, error.contents.message)))
        request = lib.request("12+35=", ignore_eos=True, max_tokens=-1)
        lib("submit", made, request, c.byref(Callbacks(None, ON_CHUNK(), on_end)))
        assert wait_until(lambda: ends, 20.0)
        assert ends[0][0] == b"engine_dead"
        assert b"rank 1 failed in step 5: ValueError: experts are out of luck" in ends[0][1]
        lib.lib.runtime_engine_destroy(made)

    def test_what_a_rank_refuses_at_the_start(self, lib, config_of):
        with pytest.raises(Failure, match="rank 1: config.json: rank 1 does not like it") as refused:
            lib("engine_create", config_of("unloadable"))
        assert (refused.value.fields["code"], refused.value.fields["hint"]) == ("model_format_error", "ask rank 0")
