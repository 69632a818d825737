"""`runtime convert`: the same model in other files, and nothing in them that could run is run."""

import io
import json
import pickle
import random
import shutil
import sys
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from runtime.basemodel import load_model
from runtime.cli.main import main
from runtime.errors import ModelFormatError
from runtime.loader import Checkpoint, TensorToWrite, write_safetensors
from runtime.loader.torch_file import read_torch_file

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6], dtype=torch.int32)


@pytest.fixture
def run(capsys):
    """Runs `runtime convert ...` in this process; (exit code, stdout, stderr)."""

    def call(*arguments):
        try:
            code = main(["convert", *map(str, arguments)])
        except SystemExit as exit_:  # argparse
            code = exit_.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def source(tiny_llama, tmp_path):
    """A copy of the tiny llama, to change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "source"))


def pickled(folder, num_files=1):
    """The folder with its weights as torch.save writes them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    if num_files == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    files = {f"pytorch_model-{i}.bin": names[i::num_files] for i in range(num_files)}
    for file, part in files.items():
        torch.save({name: torch.nn.Parameter(tensors[name]) for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def logits(folder, **options):
    model = load_model(folder, max_total_token_num=64, **options)
    b_loc = model.new_b_loc()
    model.mem_manager.extend(b_loc, [len(TOKENS)])
    count = len(TOKENS)
    return model.forward(1, count, count, TOKENS, b_loc, torch.tensor([0]), torch.tensor([count]), True)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("num_files", [1, 3])
def test_pickled_weights_become_the_same_model(run, source, tiny_llama, tmp_path, num_files):
    pickled(source, num_files)
    (source / "training.py").write_text("raise SystemExit")
    code, out, err = run(source, tmp_path / "made")
    assert (code, err) == (0, "") and "21 tensors" in out and "in 1 file\n" in out and "every tensor is there" in out
    assert torch.equal(logits(tmp_path / "made"), logits(tiny_llama))
    assert names_in(tmp_path / "made") == names_in(tiny_llama)
    assert (tmp_path / "made" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert names_in(tmp_path) == ["made", "source"]  # nothing temporary is left


def test_shards_are_as_small_as_asked_and_transformers_reads_them(run, source, reference, tmp_path):
    code, out, _ = run(source, tmp_path / "made", "--max-shard-size", "64KiB")
    files = sorted((tmp_path / "made").glob("*.safetensors"))
    largest = max(tensor.numel() * 4 for tensor in load_file(source / "model.safetensors").values())
    assert code == 0 and f"in {len(files)} files" in out and len(files) > 3 and largest > 64 << 10
    for file in files:
        held = [tensor.numel() * 4 for tensor in load_file(file).values()]
        assert sum(held) <= 64 << 10 or len(held) == 1
    assert torch.equal(logits(tmp_path / "made"), logits(source))
    read = LlamaForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), reference.parameters()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_dtype_is_that_of_files_and_configuration(run, source, tmp_path, dtype):
    pickled(source)
    assert run(source, tmp_path / "made", "--dtype", dtype)[0] == 0
    found = {info.dtype for info in Checkpoint(tmp_path / "made").tensors.values()}
    assert found == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype
    run(source, tmp_path / "whole")
    assert torch.equal(logits(tmp_path / "made", dtype=dtype), logits(tmp_path / "whole", dtype=dtype))


def test_tied_weights_are_written_once(run, tmp_path, make_tokenizer):
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model, source = LlamaForCausalLM(config), tmp_path / "source"
    config.save_pretrained(source)
    make_tokenizer(source)
    tensors = model.state_dict()
    assert tensors["lm_head.weight"].data_ptr() == tensors["model.embed_tokens.weight"].data_ptr()
    torch.save(tensors, source / "pytorch_model.bin")
    assert run(source, tmp_path / "made")[0] == 0
    made = Checkpoint(tmp_path / "made").tensors
    assert "model.embed_tokens.weight" in made and "lm_head.weight" not in made
    with torch.no_grad():
        expected = model.eval()(TOKENS[None].long()).logits[0, -1]
    torch.testing.assert_close(logits(tmp_path / "made")[-1], expected, atol=1e-5, rtol=1e-5)


def test_views_of_every_kind_are_read(tmp_path):
    whole = torch.arange(60, dtype=torch.float32)
    tensors = {
        "transposed": whole.view(6, 10).t(),
        "part": whole[10:30].view(4, 5)[:, 1:3],
        "none": torch.empty(0, 3),
        "half": torch.randn(3, 2).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = read_torch_file(tmp_path / "pytorch_model.bin")
    assert list(found) == list(tensors) and all(torch.equal(found[name].read(), tensors[name]) for name in tensors)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive = []

    def read():
        assert not any(ref() is not None for ref in alive), "an earlier tensor is still held"
        values = torch.ones(100)
        alive.append(weakref.ref(values))
        return values

    tensors = [TensorToWrite(f"t{i}", torch.float32, (100,), read) for i in range(5)]
    assert write_safetensors(tmp_path, tensors, 1000, lambda tensor: None) == 3 and len(alive) == 5


def test_progress_shows_on_a_terminal_only(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = run(source, tmp_path / "made")
    assert "100 %" in err and err.endswith("\r\x1b[K")


# What is refused


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_nothing_in_a_pickle_is_run(run, source, tmp_path):
    pickled(source)
    torch.save({"lm_head.weight": Malicious(tmp_path / "marker")}, source / "pytorch_model.bin")
    code, out, err = run(source, tmp_path / "made")
    assert (code, out) == (65, "") and "pytorch_model.bin: it calls " in err and "nothing was run" in err
    assert not (tmp_path / "marker").exists() and not (tmp_path / "made").exists()
    with pytest.raises(pickle.UnpicklingError):  # torch's own careful loader agrees
        torch.load(source / "pytorch_model.bin", weights_only=True)


def test_damaged_files_are_refused_and_never_more(tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "pytorch_model.bin"
    torch.save({f"layer.{i}.weight": torch.randn(4, 4) for i in range(3)}, buffer)
    whole, rng, refused = buffer.getvalue(), random.Random(0), 0
    begin = whole.index(b"\x80\x02}")  # of data.pkl
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.choice([rng.randrange(begin, begin + 400), rng.randrange(len(whole))])] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(whole), len(whole), rng.randrange(len(whole))])])
        try:
            for tensor in read_torch_file(path).values():
                assert tensor.read().numel() <= len(whole)
        except ModelFormatError as error:
            assert "pytorch_model.bin" in str(error)
            refused += 1
    assert refused > 400


def nested_for_ever(kind):
    """The body of a pickle of 2**60 leaves: each level holds the one below twice."""
    value = kind()
    for _ in range(60):
        value = kind([value, value])
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize(
    "program, sentence",
    [
        (b"}" + nested_for_ever(tuple) + b"K\x01s", "a key of its data.pkl is no name"),
        (b"}X\x01\0\0\0a" + nested_for_ever(list) + b"s", "its 'a' is not a tensor"),
        (nested_for_ever(list) + b")R", "it calls a list, which makes no tensor"),
        (
            b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + nested_for_ever(list) + b"NK\x01tQ",
            "a storage without a name",
        ),
        (b"ctorch.hub\nload\n)R", "it calls torch.hub.load"),
        (b"csys\nexit\n)\x81", "its data.pkl has NEWOBJ"),
        (b"K\x01", "it does not hold tensors by name"),
        (b"N" * 10 + b"u", "not a file of tensors by torch.save"),
    ],
)
def test_hostile_descriptions_end_at_once(tmp_path, program, sentence):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + program + b".")
    with pytest.raises(ModelFormatError) as refused:
        read_torch_file(path)
    assert sentence in str(refused.value)


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word


@pytest.mark.parametrize(
    "count, offset, size, stride, found",
    [
        (4, 0, 4, 1, [0, 1, 2, 3]),
        (4, 1, 2, 2, [1, 3]),
        (4, 1, 4, 1, "a tensor of [4] from element 1 on passes the 4 of its storage"),
        (4, 0, 3, 2, "a tensor of [3] from element 0 on passes the 4 of its storage"),
        (4, 0, 5, 0, "a tensor of [5] from element 0 on passes the 4 of its storage"),  # one element, any size
        (5, 0, 4, 1, "its data/0 has 16 bytes, 5 elements of torch.float32 were announced"),
    ],
)
def test_a_tensor_lies_inside_its_storage(tmp_path, count, offset, size, stride, found):
    storage = (
        b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + bytes([75, count]) + b"tQ"
    )
    shape = bytes([75, offset, 75, size, 0x85, 75, stride, 0x85])
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"\x89NtR"
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}" + text(b"a") + tensor + b"s.")
        archive.writestr("model/data/0", torch.arange(4, dtype=torch.float32).numpy().tobytes())
    if isinstance(found, list):
        assert read_torch_file(path)["a"].read().tolist() == found
        return
    with pytest.raises(ModelFormatError) as refused:
        read_torch_file(path)
    assert found in str(refused.value)


def compressed(folder):
    pickled(folder)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\0" * 1000)


def legacy(folder):
    tensors = load_file(pickled_source := folder / "model.safetensors")
    pickled_source.unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def nested(folder):
    pickled(folder)
    torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "pytorch_model.bin")


def incomplete(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    del tensors["model.norm.weight"]
    torch.save(tensors | {"extra": torch.ones(2)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "damage, sentences",
    [
        (compressed, ["'model/data.pkl' is compressed"]),
        (legacy, ["written by torch 1.5 or older (download it again, or save it again with a newer torch)"]),
        (nested, ["pytorch_model.bin: its 'state_dict' is not a tensor; a checkpoint of weights alone is needed"]),
        (incomplete, ["missing: model.norm.weight [64]", "unused: extra [2]"]),
        (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["has no safetensors"]),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), ["tokenizer_config.json is not valid"]),
    ],
)
def test_bad_sources_make_nothing(run, source, tmp_path, damage, sentences):
    damage(source)
    code, out, err = run(source, tmp_path / "made")
    assert (code, out) == (65, "") and all(sentence in err for sentence in sentences)
    assert "Traceback" not in err and names_in(tmp_path) == ["source"]


def test_a_value_that_a_dtype_cannot_hold_leaves_the_destination_as_it_was(run, source, tmp_path):
    assert run(source, tmp_path / "made")[0] == 0
    before = (tmp_path / "made" / "model.safetensors").read_bytes()
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, source / "model.safetensors")
    code, _, err = run(source, tmp_path / "made", "--dtype", "float16", "--overwrite")
    assert code == 65 and "model.norm.weight: its largest value is 7e+04, and float16 ends at 6.55e+04" in err
    assert "--dtype bfloat16" in err and names_in(tmp_path) == ["made", "source"]
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == before


def test_a_destination_that_is_not_empty_needs_overwrite(run, source, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    assert run(source, made)[0] == 0  # an empty one is as good as none
    code, _, err = run(source, made)
    assert code == 2 and "made is not empty: it holds config.json (--overwrite replaces it)" in err
    assert run(source, made, "--overwrite", "--max-shard-size", "64KiB")[0] == 0
    assert not (made / "model.safetensors").exists() and torch.equal(logits(made), logits(source))
    (made / "thesis.odt").touch()
    code, _, err = run(source, made, "--overwrite")
    assert code == 2 and "holds thesis.odt, which is no file of a model" in err and (made / "thesis.odt").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["{source}", "{source}"], "must be folders beside each other"),
        (["{source}", "{source}/made"], "must be folders beside each other"),
        (["{source}", "{source}/config.json"], "must be folders beside each other"),
        (["{source}", "{file}"], "is a file; a folder is made there"),
        (["{source}", "{source}-1/made"], "there is no folder"),
        (["{source}", "{source}-1", "--max-shard-size", "12"], "--max-shard-size=12: must be at least 1024 bytes"),
        (["{source}", "{source}-1", "--max-shard-size", "many"], "--max-shard-size='many': must be a number of bytes"),
        (["{source}", "{source}-1", "--dtype", "bf16"], "--dtype='bf16': must be one of keep, bfloat16"),
        (["{source}"], "required: DST"),
    ],
)
def test_bad_command_lines(run, source, tmp_path, arguments, sentence):
    (tmp_path / "file").touch()
    code, out, err = run(*(one.format(source=source, file=tmp_path / "file") for one in arguments))
    assert (code, out) == (2, "") and sentence in err and len(err.splitlines()) == 1


def test_a_full_disk_is_seen_before_anything_is_written(run, source, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    code, _, err = run(source, tmp_path / "made")
    assert code == 2 and "takes 0.00 GiB, 0.00 GiB are free there (--dtype bfloat16 takes 0.00 GiB)" in err
