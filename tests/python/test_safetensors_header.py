"""Headers of safetensors files: what is wrong with one is said before the safetensors library reads it."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import ModelFormatError
from runtime.loader import Checkpoint, read_header


@pytest.fixture
def path(tmp_path):
    """A good file, alone in its folder."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(11, 16), "b.weight": torch.ones(16), "c": torch.ones(2, 3).bfloat16()}, path)
    return path


def read(path):
    """Every tensor, through the loader."""
    checkpoint = Checkpoint(path.parent)
    for name, info in checkpoint.tensors.items():
        index = tuple(slice(None) for _ in info.shape)
        checkpoint.read(name, index, dtype=torch.float32, device=torch.device("cpu"))


def refusal(path):
    with pytest.raises(ModelFormatError) as refused:
        read(path)
    return str(refused.value)


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "model.safetensors has 0 bytes, at least 8 are needed: truncated or damaged"),
        (b"\x02\x00", "truncated or damaged"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "a header of 9223372036854775808 bytes, but at most 2 fit"),
        (safetensors_bytes(b"{nonsense"), "not valid JSON"),
        (safetensors_bytes(b"[]"), "not a JSON object"),
        (safetensors_bytes(b'{"a": 1, "a": 2}'), "stands there twice"),
        (safetensors_bytes({"a": 7}), "tensor a: its entry is not an object of data_offsets, dtype, shape"),
        (safetensors_bytes({"a": entry() | {"b": 1}}, bytes(8)), "tensor a: its entry is not an object of"),
        (safetensors_bytes({"__metadata__": {"a": 1}}), "its __metadata__ is not an object of texts"),
        (safetensors_bytes({"a" * 257: entry()}, bytes(8)), "is not up to 256 printable characters"),
        (safetensors_bytes({"a\nb": entry()}, bytes(8)), "tensor name 'a\\nb' is not up to 256 printable"),
        (safetensors_bytes({"__metadata__": {"a": "\ud800"}}), "surrogates not allowed"),
        (safetensors_bytes({"a": entry(dtype="X9")}, bytes(8)), "its dtype 'X9' is unknown"),
        (safetensors_bytes({"a": entry(shape=[-2])}, bytes(8)), "its shape is not a short list of sizes"),
        (safetensors_bytes({"a": entry(shape=[1] * 9)}, bytes(8)), "its shape is not a short list of sizes"),
        (safetensors_bytes({"a": entry(offsets=[0])}, bytes(8)), "its data_offsets are not two sizes"),
        (
            safetensors_bytes({"a": entry(shape=[3])}, bytes(8)),
            "shape [3] of F32 needs 12 bytes, but its data_offsets span 8",
        ),
        (safetensors_bytes({"a": entry(shape=[2**40, 2**40])}, bytes(8)), "needs 4835703278458516698824704 bytes"),
        (safetensors_bytes({"a": entry()}, bytes(7)), "need 8 bytes of data, the file has 7: truncated or damaged"),
        (safetensors_bytes({"a": entry()}, bytes(9)), "need 8 bytes of data, the file has 9"),
        (safetensors_bytes({"a": entry(offsets=[4, 12])}, bytes(12)), "tensor a leaves a gap after the header"),
        (safetensors_bytes({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "tensor b overlaps a"),
    ],
)
def test_wrong_headers(path, content, words):
    path.write_bytes(content)
    assert words in refusal(path)


def test_what_only_the_library_refuses_is_worded_too(path):
    """-0 is an integer to Python's JSON and a float to the library's."""
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    header = whole[8:header_end].replace(b'"data_offsets":[0,', b'"data_offsets":[-0,')
    path.write_bytes(safetensors_bytes(header, whole[header_end:]))
    assert "model.safetensors: " in (text := refusal(path)) and "-0.0" in text


def test_truncated_files(path):
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 3):
        path.write_bytes(whole[:length])
        assert "truncated or damaged" in (text := refusal(path)) and "model.safetensors" in text


def test_damaged_headers_only_ever_raise_format_errors(path):
    """Whatever the checks let pass, the safetensors library must accept too."""
    whole, randomness = path.read_bytes(), random.Random(0)
    header_end, num_refused = 8 + int.from_bytes(whole[:8], "little"), 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(randomness.randint(1, 3)):
            damaged[randomness.randrange(header_end)] = randomness.choice(b'0123456789[]{}",:ae\x00\xff')
        path.write_bytes(damaged)
        try:
            read_header(path)
        except ModelFormatError:
            num_refused += 1
        else:
            load_file(path)
    assert num_refused > 500
