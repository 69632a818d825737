"""runtime_c.h for ctypes."""

import ctypes as c
import json
import re
from pathlib import Path

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
        ("bad_words", c.POINTER(c.c_char_p)),
        ("num_bad_words", c.c_size_t),
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
