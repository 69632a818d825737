"""What a start refuses: a device that cannot hold or run the model, one that fails, and memory that others took."""

import json

import pytest
import torch
from devices import CONFIGS, LLAMA_8B, h200, plan

from runtime import LLM
from runtime.cli.main import main
from runtime.engine import device as device_module
from runtime.engine import loading, memory_use
from runtime.engine.device import GIB, Device, resolve_device
from runtime.errors import CapacityError, DeviceNotFoundError, ModelFormatError


@pytest.mark.parametrize(
    "device, arguments, error, sentence",
    [
        ({"memory_bytes": 16 * GIB}, {}, CapacityError, "17.52 GiB are needed (weights 14.96,"),
        ({"memory_bytes": 16 * GIB}, {}, CapacityError, "no argument makes it fit; a device of 19.5 GiB would hold it"),
        ({"memory_bytes": 18 * GIB}, {}, CapacityError, "gpu_memory_utilization=0.98 would fit"),
        ({"memory_bytes": 18 * GIB, "used_bytes": 17 * GIB}, {}, CapacityError, "in use before 17.00"),
        (
            {"memory_bytes": 22 * GIB},
            {"max_model_len": 40000},
            CapacityError,
            "max_model_len=40000 needs 625 KV blocks of 64 tokens, and",
        ),
        (
            {"memory_bytes": 19 * GIB},
            {"max_num_batched_tokens": 32768},
            CapacityError,
            "(max_num_batched_tokens=4096 would fit)",
        ),
        ({}, {"num_kv_blocks": 1 << 20}, CapacityError, "and NVIDIA H200 has 140.00 GiB"),
        ({}, {"kv_cache_memory_bytes": 1000}, CapacityError, "the KV cache has room for 1000 bytes"),
        (
            {"name": "Tesla T4", "capability": (7, 5)},
            {},
            DeviceNotFoundError,
            "Tesla T4 has compute capability 7.5 (sm_75); 8.0 (sm_80) and newer are supported",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(device, arguments, error, sentence):
    with pytest.raises(error) as refused:
        plan(h200(**device), **arguments)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_advised_fits():
    with pytest.raises(CapacityError, match=r"gpu_memory_utilization=0\.98 would fit"):
        plan(h200(memory_bytes=18 * GIB))
    assert plan(h200(memory_bytes=18 * GIB), gpu_memory_utilization=0.98).kv_blocks > 0


def test_a_head_dimension_without_a_kernel_runs_on_the_cpu_alone(tmp_path):
    config = json.loads((CONFIGS / "llama-3.1-8b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": 192}))
    with pytest.raises(ModelFormatError, match="head_dim=192 is not supported on CUDA; supported: 16, 32, 64, 80, 96"):
        plan(h200(), model=str(tmp_path))
    assert plan(Device("cpu", "a CPU", 64 * GIB), model=str(tmp_path)).kv_blocks > 0


@pytest.mark.parametrize(
    "message, sentence",
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new version from the URL: ...",
            "the NVIDIA driver supports CUDA 11.4, and torch 2.99 needs CUDA 12.8 (update the driver, or install",
        ),
        ("Found no NVIDIA driver on your system. Please check ...", "there is no NVIDIA driver (device='cpu' works"),
        (
            "CUDA unknown error - the environment is wrong.\nmore",
            "CUDA unknown error - the environment is wrong (`nvidia-smi`",
        ),
    ],
)
def test_a_driver_that_does_not_work_is_named_with_versions(monkeypatch, message, sentence):
    def init():
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "__version__", "2.99")
    with pytest.raises(DeviceNotFoundError) as refused:
        resolve_device("cuda")
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    warnings = []
    monkeypatch.setattr(device_module.logger, "warning", lambda *args: warnings.append(args[0] % args[1:]))
    assert resolve_device("auto") == "cpu"
    assert len(warnings) == ("no NVIDIA driver" not in message)  # a machine without one is nothing to warn of


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..."),
    RuntimeError("Triton Error [CUDA]: out of memory"),  # past torch's allocator, as the next two
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
]


@pytest.mark.parametrize("failure", NO_MEMORY, ids=["torch", "triton", "cublas", "cuda"])
def test_memory_taken_between_plan_and_start(tiny_llama, monkeypatch, failure):
    def taken(*args, **options):
        raise failure

    monkeypatch.setattr(loading, "probe_device", lambda kind: Device("cpu", "x", 64 * GIB, used_bytes=GIB))
    monkeypatch.setattr(
        loading, "model_class_of", lambda folder: type("Taken", (), {"__new__": taken, "config_defaults": {}})
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (2 * GIB, 64 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *args: 10 * GIB)
    with pytest.raises(CapacityError) as refused:
        LLM(str(tiny_llama), num_kv_blocks=60 * GIB // (512 * 16) - 1)
    assert "1.00 GiB in use by others, who have 52.00 GiB now, and 2.00 GiB are free" in str(refused.value)
    assert "stop the process that took 51.00 GiB meanwhile" in str(refused.value)
    assert "kv_cache_memory_bytes=9" in str(refused.value)  # 60 - 51 GiB


def test_a_plan_that_was_too_low_blames_nobody(monkeypatch):
    planned = plan(h200())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (GIB // 4, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *args: 139 * GIB)
    with pytest.raises(CapacityError) as refused, memory_use.MemoryMeter(Device("cpu", "x", GIB)).guard(planned):
        raise torch.OutOfMemoryError
    assert f"kv_cache_memory_bytes={planned.kv_cache - GIB} leaves more room" in str(refused.value)
    assert "no other process took it" in str(refused.value) and "stop the process" not in str(refused.value)


def test_other_failures_of_a_start_stay_what_they_are():
    with (
        pytest.raises(RuntimeError, match="illegal address"),
        memory_use.MemoryMeter(Device("cpu", "x", GIB)).guard(plan(h200())),
    ):
        raise RuntimeError("CUDA error: an illegal address was encountered")


@pytest.mark.parametrize(
    "failure, code, sentence",
    [
        (
            "CUDA error: out of memory\nCompile with ...",
            69,
            "the 0.50 GiB of a CUDA context are not free (`nvidia-smi`",
        ),
        (
            "CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors ...",
            69,
            "device='cuda': CUDA error: all CUDA-capable devices are busy or unavailable (`nvidia-smi` shows",
        ),
    ],
)
def test_a_device_that_cannot_even_be_asked(monkeypatch, capsys, failure, code, sentence):
    def asked(*args):
        raise RuntimeError(failure)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    assert main(["inspect", "--plan", "--device", "cuda"]) == code
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "device, code, sentences",
    [
        ({"memory_bytes": 8 * GIB}, 69, ["17.52 GiB are needed", "a device of 19.5 GiB would hold it"]),
        ({"name": "Tesla T4", "capability": (7, 5)}, 69, ["compute capability 7.5 (sm_75)", "8.0 (sm_80)"]),
        (None, 69, ["other processes hold the memory of the device", "CUDA_VISIBLE_DEVICES chooses another GPU"]),
    ],
)
def test_a_start_on_a_device_that_cannot_is_one_sentence_and_an_exit_code(monkeypatch, capsys, device, code, sentences):
    def stream():
        if device is None:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *args: 0)
    monkeypatch.setattr(loading, "probe_device", lambda kind: h200(**device))
    arguments = ["generate", LLAMA_8B["model"], "-p", "x", "--load-format", "dummy", "--skip-tokenizer-init"]
    assert main([*arguments, "--device", "cuda"]) == code
    err = capsys.readouterr().err
    assert all(sentence in err for sentence in sentences) and err.count("\n") == 1
