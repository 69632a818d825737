"""tools/setup.py: which torch a machine gets, what apt must add, and when a second call does nothing."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a space in its name and only the files that setup.py looks at."""
    root = tmp_path / "my checkout"
    for name in ("pyproject.toml", "CMakeLists.txt", "tools/setup.py", "tools/constraints-cpu.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "csrc").mkdir()
    (root / "csrc" / "a.cpp").write_text("int a;\n")
    return root


@pytest.fixture
def setup(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_setup", checkout / "tools" / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "project_setup", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "missing_apt_packages", lambda groups: [])
    return module


@pytest.fixture
def pip_calls(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records pip's arguments instead of running it."""
    calls: list[list[str]] = []

    def pip(venv: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(list(arguments))
        return subprocess.CompletedProcess(arguments, returncode=0, stdout="", stderr="")

    def make_environment(venv: Path) -> None:
        shutil.rmtree(venv, ignore_errors=True)
        venv.mkdir()

    monkeypatch.setattr(setup, "pip", pip)
    monkeypatch.setattr(setup, "has_pip", lambda venv: venv.exists())
    monkeypatch.setattr(setup, "make_environment", make_environment)
    return calls


def fake_driver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    probe = folder / "nvidia-smi"
    probe.write_text(f"#!/bin/sh\n{script}\n")
    probe.chmod(probe.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_driver_with_gpu_means_cuda(setup, tmp_path, monkeypatch):
    fake_driver(tmp_path / "bin", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)'", monkeypatch)
    assert setup.detect_device() == "cuda"


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has a driver")
@pytest.mark.parametrize("script", ["echo 'No devices were found'; exit 6", "echo failed >&2; exit 9", "exit 0"])
def test_driver_without_gpu_means_cpu(setup, tmp_path, monkeypatch, script):
    fake_driver(tmp_path / "bin", script, monkeypatch)
    assert setup.detect_device() == "cpu"


def test_the_user_may_choose(setup, tmp_path, monkeypatch):
    fake_driver(tmp_path / "bin", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)'", monkeypatch)
    monkeypatch.setenv("TORCH_DEVICE", "cpu")
    assert setup.torch_device() == "cpu"
    monkeypatch.setenv("TORCH_DEVICE", "tpu")
    with pytest.raises(setup.SetupError, match="TORCH_DEVICE=tpu: cpu or cuda"):
        setup.torch_device()


def test_cpu_machine_is_held_to_cpu_builds(setup, pip_calls, tmp_path):
    setup.set_up(tmp_path / "venv", "cpu", ["test"])
    dependent = [call for call in pip_calls if "pip>=25.1" not in call]
    assert all(str(setup.CONSTRAINTS) in call for call in dependent)
    assert not any(setup.TORCH_CPU_INDEX in call for call in pip_calls), "the configured indexes had it"
    pins = setup.CONSTRAINTS.read_text().splitlines()
    assert any(line.startswith("torch==") and "+cpu" in line for line in pins)


def test_cuda_machine_is_not_constrained(setup, pip_calls, tmp_path):
    setup.set_up(tmp_path / "venv", "cuda", [])
    assert ["torch>=2.11"] in pip_calls
    assert not any("--constraint" in call or "--extra-index-url" in call for call in pip_calls)


def test_pytorch_index_is_the_second_choice(setup, pip_calls, tmp_path, monkeypatch):
    recorded = setup.pip

    def without_torch(venv, arguments):
        result = recorded(venv, arguments)
        result.returncode = int("torch" in arguments and setup.TORCH_CPU_INDEX not in arguments)
        return result

    monkeypatch.setattr(setup, "pip", without_torch)
    setup.set_up(tmp_path / "venv", "cpu", [])
    torch_calls = [call for call in pip_calls if "torch" in call]
    assert [setup.TORCH_CPU_INDEX in call for call in torch_calls] == [False, True]


def test_second_call_does_nothing_until_the_build_changes(setup, checkout, pip_calls, tmp_path):
    venv = tmp_path / "venv"
    setup.set_up(venv, "cpu", [])
    num_calls = len(pip_calls)
    setup.set_up(venv, "cpu", [])
    assert len(pip_calls) == num_calls

    (checkout / "csrc" / "a.cpp").write_text("int b;\n")
    setup.set_up(venv, "cpu", [])
    assert len(pip_calls) == 2 * num_calls


def test_python_edits_need_no_set_up(setup, checkout, pip_calls, tmp_path):
    setup.set_up(tmp_path / "venv", "cpu", [])
    num_calls = len(pip_calls)
    (checkout / "models").mkdir()
    (checkout / "models" / "new.py").write_text("")
    setup.set_up(tmp_path / "venv", "cpu", [])
    assert len(pip_calls) == num_calls


def test_a_group_is_installed_when_first_asked_for(setup, pip_calls, tmp_path):
    setup.set_up(tmp_path / "venv", "cpu", [])
    assert not any("test" in call for call in pip_calls)
    setup.set_up(tmp_path / "venv", "cpu", ["test"])
    assert any("test" in call for call in pip_calls)
    setup.set_up(tmp_path / "venv", "cpu", ["lint"])
    num_calls = len(pip_calls)
    setup.set_up(tmp_path / "venv", "cpu", [])
    setup.set_up(tmp_path / "venv", "cpu", ["test"])
    assert len(pip_calls) == num_calls, "what was asked for before stays complete"


def test_failed_set_up_is_tried_again(setup, pip_calls, tmp_path, monkeypatch):
    recorded = setup.pip

    def broken_build(venv, arguments):
        result = recorded(venv, arguments)
        result.returncode = int("--editable" in arguments)
        return result

    venv = tmp_path / "venv"
    with monkeypatch.context() as patch:
        patch.setattr(setup, "pip", broken_build)
        with pytest.raises(setup.SetupError, match="C\\+\\+ core"):
            setup.set_up(venv, "cpu", [])
    num_calls = len(pip_calls)
    setup.set_up(venv, "cpu", [])
    assert len(pip_calls) > num_calls


def test_another_device_starts_from_an_empty_environment(setup, pip_calls, tmp_path):
    venv = tmp_path / "venv"
    setup.set_up(venv, "cpu", [])
    (venv / "torch-for-the-cpu").touch()
    setup.set_up(venv, "cuda", [])
    assert not (venv / "torch-for-the-cpu").exists()


def test_without_root_the_apt_line_is_printed_and_nothing_installed(setup, pip_calls, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "missing_apt_packages", lambda groups: ["python3-venv", "libgtest-dev"])
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    with pytest.raises(setup.SetupError, match="as root: apt-get install -y python3-venv libgtest-dev"):
        setup.set_up(tmp_path / "venv", "cpu", ["test"])
    assert pip_calls == []
