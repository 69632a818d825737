"""Builds the C++ tests of the embedding against the installed package."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import LLM, SamplingParams
from runtime.__main__ import cmake_dir

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "12+35=",
    "40+2=",
    "907-18=",
    "reverse(abcd)=",
    "sort(53142)=",
    "x",
    *(f"{a}+{3 * a}=" for a in range(10, 26)),
]
BUILTIN = ROOT / "python" / "runtime" / "assets" / "builtin"
SCORED = [("12+35=", "47"), ("12+35=", "48"), ("reverse(abc)=", "cba")]
BUILD = ROOT / "build" / "tests-embed"

# imported as Python starts, in the program and in its ranks: the only way into a program that knows no Python
FAMILIES = """
from runtime.basemodel import register_model
from runtime.errors import ModelFormatError
from runtime.models.llama import LlamaTpPartModel

@register_model("raising")
class Raising(LlamaTpPartModel):
    def _init_custom(self):
        super()._init_custom()
        self.count = 0

    def run(self, input_ids, infer_state):
        self.count += 1
        if self.tp_rank_ == 1 and self.count == 5:
            raise ValueError("experts are out of luck")
        return super().run(input_ids, infer_state)

@register_model("unloadable")
class Unloadable(LlamaTpPartModel):
    def _init_custom(self):
        super()._init_custom()
        if self.tp_rank_ == 1:
            raise ModelFormatError("config.json: rank 1 does not like it", hint="ask rank 0")
"""


def tool(name: str) -> str:
    """Of this environment, which need not be activated."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


@pytest.fixture(scope="session")
def libruntime() -> Path:
    return cmake_dir().parent / "lib" / "libruntime.so"


@pytest.fixture(scope="session")
def build_folder(libruntime) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # one worker builds, the others find it built
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [tool("cmake"), "-S", ROOT / "tests" / "embed", "-B", BUILD, "-G", "Ninja"]
        settings = [f"-Druntime_DIR={cmake_dir()}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        for command in ([*configure, *settings], [tool("cmake"), "--build", BUILD]):
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert result.returncode == 0, result.stdout + result.stderr
    return BUILD


@pytest.fixture(scope="session")
def python_outputs(tmp_path_factory):
    """Asks Python's engine, built with these arguments; the file is for tests/embed/expected_outputs.h."""

    def ask(**arguments: object) -> Path:
        lines = []
        with LLM(device="cpu", max_num_seqs=32, num_kv_blocks=512, **arguments) as llm:
            params = [
                SamplingParams(seed=i, temperature=0.0 if i % 2 else 0.9, max_tokens=24) for i in range(len(PROMPTS))
            ]
            for one, output in zip(params, llm.generate(PROMPTS, params, use_tqdm=False)):
                token_ids = "".join(f"{token_id} " for token_id in output.outputs[0].token_ids)
                text = output.outputs[0].text
                assert not set(text) & {"\n", "\t"}
                lines.append(["generate", str(one.seed), str(one.temperature), output.prompt, token_ids, text])
            for prompt, continuation in SCORED:
                logprobs = " ".join(f"{score:.6f}" for score in llm.score(prompt, continuation))
                lines.append(["score", prompt, continuation, logprobs])
        path = tmp_path_factory.mktemp("embed") / "expected"
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return path

    return ask


@pytest.fixture(scope="session")
def failing_models(tmp_path_factory):
    """The built-in model under the names of two families whose rank 1 fails; variables for a C++ program."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing_families.py").write_text(FAMILIES)
    (folder / "sitecustomize.py").write_text("import failing_families\n")
    variables = {"PYTHONPATH": str(folder)}
    for name in ("raising", "unloadable"):
        shutil.copytree(BUILTIN, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**config, "model_type": name}))
        variables[f"TEST_{name.upper()}_MODEL"] = str(folder / name)
    return variables
