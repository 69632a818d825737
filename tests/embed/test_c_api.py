"""The C interface, called from a process that runs Python already: the engine is this interpreter's."""

import ctypes
import ctypes as c
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from ranks import rank_pids, wait_until
from structured_cases import REFUSED_FORMS

import runtime
from runtime import LLM, SamplingParams
from runtime.basemodel import registry

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "include" / "runtime" / "runtime_c.h"
ENDED, CHUNK, NOTHING_YET, FAILED = 0, 1, 2, -1


class Error(c.Structure):
    _fields_ = [(name, c.c_char_p) for name in ("code", "message", "hint", "param", "value", "limit", "suggestion")]


class Value(c.Union):
    _fields_ = [("boolean", c.c_bool), ("integer", c.c_int64), ("real", c.c_double), ("text", c.c_char_p)]


class Argument(c.Structure):
    _fields_ = [("name", c.c_char_p), ("kind", c.c_int), ("value", Value)]


class Config(c.Structure):
    _fields_ = [
        ("model", c.c_char_p),
        ("arguments", c.POINTER(Argument)),
        ("num_arguments", c.c_size_t),
        ("python", c.c_char_p),
    ]


class Prompt(c.Structure):
    _fields_ = [("text", c.c_char_p), ("token_ids", c.POINTER(c.c_int32)), ("num_token_ids", c.c_size_t)]


class StructuredOutputs(c.Structure):
    _fields_ = [
        ("json", c.c_char_p),
        ("regex", c.c_char_p),
        ("grammar", c.c_char_p),
        ("choice", c.POINTER(c.c_char_p)),
        ("num_choice", c.c_size_t),
        ("json_object", c.c_bool),
        ("disable_any_whitespace", c.c_bool),
    ]


class Request(c.Structure):
    _fields_ = [
        ("prompt", Prompt),
        ("n", c.c_int64),
        ("temperature", c.c_double),
        ("top_p", c.c_double),
        ("top_k", c.c_int64),
        ("min_p", c.c_double),
        ("presence_penalty", c.c_double),
        ("frequency_penalty", c.c_double),
        ("repetition_penalty", c.c_double),
        ("seed", c.POINTER(c.c_int64)),
        ("stop", c.POINTER(c.c_char_p)),
        ("num_stop", c.c_size_t),
        ("stop_token_ids", c.POINTER(c.c_int64)),
        ("num_stop_token_ids", c.c_size_t),
        ("ignore_eos", c.c_bool),
        ("max_tokens", c.c_int64),
        ("min_tokens", c.c_int64),
        ("logprobs", c.POINTER(c.c_int64)),
        ("logit_bias", c.c_void_p),
        ("num_logit_bias", c.c_size_t),
        ("allowed_token_ids", c.POINTER(c.c_int64)),
        ("num_allowed_token_ids", c.c_size_t),
        ("detokenize", c.c_bool),
        ("skip_special_tokens", c.c_bool),
        ("include_stop_str_in_output", c.c_bool),
        ("priority", c.c_int64),
        ("tenant", c.c_char_p),
        ("deadline_s", c.POINTER(c.c_double)),
        ("cache_salt", c.c_char_p),
        ("structured_outputs", c.POINTER(StructuredOutputs)),
    ]


class TokenLogprobs(c.Structure):
    _fields_ = [("token_ids", c.POINTER(c.c_int32)), ("logprobs", c.POINTER(c.c_float)), ("size", c.c_size_t)]


class Metrics(c.Structure):
    _fields_ = [(name, c.c_double) for name in ("queue_s", "ttft_s", "e2e_s")] + [
        (name, c.c_int64) for name in ("num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "num_preemptions")
    ]


class Chunk(c.Structure):
    _fields_ = [
        ("index", c.c_int32),
        ("text", c.c_char_p),
        ("text_size", c.c_size_t),
        ("token_ids", c.POINTER(c.c_int32)),
        ("num_token_ids", c.c_size_t),
        ("logprobs", c.POINTER(TokenLogprobs)),
        ("num_logprobs", c.c_size_t),
        ("finish", c.c_int),
        ("stop_string", c.c_char_p),
        ("stop_token_id", c.c_int32),
        ("metrics", c.POINTER(Metrics)),
    ]


ON_CHUNK = c.CFUNCTYPE(None, c.c_void_p, c.c_int64, c.POINTER(Chunk))
ON_END = c.CFUNCTYPE(None, c.c_void_p, c.c_int64, c.POINTER(Error))


class Callbacks(c.Structure):
    _fields_ = [("context", c.c_void_p), ("on_chunk", ON_CHUNK), ("on_end", ON_END)]


def struct_of_header(name: str) -> list[str]:
    """The field names of a struct of runtime_c.h."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", text, re.DOTALL)[1]
    return [re.findall(r"(\w+)$", part)[0] for line in body.split(";") if line.strip() for part in line.split(",")]


STATS, PLAN = (
    type(name, (c.Structure,), {"_fields_": [(field, c.c_int64) for field in struct_of_header(name)]})
    for name in ("runtime_stats", "runtime_memory_plan")
)


class Library:
    """The functions, by ctypes' loader; a failed call raises `Failure`."""

    def __init__(self, path: Path, loader=c.CDLL) -> None:
        self.lib = loader(str(path))
        errors = c.POINTER(c.POINTER(Error))
        self.lib.runtime_version.restype = c.c_char_p
        self.declare("engine_create", c.c_void_p, c.POINTER(Config), errors)
        self.declare("engine_destroy", None, c.c_void_p)
        self.declare("submit", c.c_int64, c.c_void_p, c.POINTER(Request), c.POINTER(Callbacks), errors)
        self.declare("next", c.c_int, c.c_void_p, c.c_int64, c.c_double, c.POINTER(c.POINTER(Chunk)), errors)
        self.declare("abort", None, c.c_void_p, c.c_int64)
        self.declare("release", None, c.c_void_p, c.c_int64)
        prompt = c.POINTER(Prompt)
        self.declare("score", c.c_int64, c.c_void_p, prompt, prompt, c.POINTER(c.c_double), c.c_size_t, errors)
        self.declare("drain", c.c_bool, c.c_void_p, c.c_double, errors)
        self.declare("engine_stats", c.c_bool, c.c_void_p, c.POINTER(STATS), errors)
        self.declare("plan", c.c_bool, c.POINTER(Config), c.POINTER(PLAN), errors)

    def declare(self, name: str, result: object, *arguments: object) -> None:
        function = getattr(self.lib, f"runtime_{name}")
        function.restype, function.argtypes = result, arguments

    def __call__(self, name: str, *arguments: object):
        error = c.POINTER(Error)()
        result = getattr(self.lib, f"runtime_{name}")(*arguments, c.byref(error))
        if error:
            found = {field: getattr(error.contents, field).decode() for field, _ in Error._fields_}
            self.lib.runtime_error_free(error)
            raise Failure(found)
        return result

    def request(self, prompt: str, **fields: object) -> Request:
        request = Request()
        self.lib.runtime_request_init(c.byref(request))
        request.prompt.text = prompt.encode()
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    def read(self, engine: int, request_id: int) -> tuple[str, list[Chunk]]:
        text, last = "", {}
        while True:
            chunk = c.POINTER(Chunk)()
            if self("next", engine, request_id, -1.0, c.byref(chunk)) == ENDED:
                return text, last
            text += chunk.contents.text.decode()
            last = {"finish": chunk.contents.finish, "metrics": bool(chunk.contents.metrics)}
            self.lib.runtime_chunk_free(chunk)


class Failure(Exception):
    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields["message"])
        self.fields = fields


def config(**arguments: object) -> Config:
    kinds = {bool: (0, "boolean"), int: (1, "integer"), float: (2, "real"), str: (3, "text")}
    items = (Argument * len(arguments))()
    for item, (name, value) in zip(items, arguments.items()):
        item.name, (item.kind, field) = name.encode(), kinds[type(value)]
        setattr(item.value, field, value.encode() if isinstance(value, str) else value)
    return Config(None, items, len(arguments), None)


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


def form(given: dict[str, object]) -> StructuredOutputs:
    """A dict of Python's in C."""
    made = StructuredOutputs()
    for name, value in given.items():
        if name == "choice":
            made.choice = (c.c_char_p * len(value))(*(text.encode() for text in value))
            made.num_choice = len(value)
        elif isinstance(value, dict):
            setattr(made, name, json.dumps(value).encode())
        else:
            setattr(made, name, value.encode() if isinstance(value, str) else value)
    return made


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
