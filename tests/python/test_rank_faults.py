"""A rank that is lost is named at once, ends every request and leaves nothing behind."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ranks import all_gone, rank_pids, runs, wait_until

from runtime import LLM, SamplingParams
from runtime.basemodel import registry
from runtime.engine import Knobs
from runtime.engine.model_runner import ModelRunner
from runtime.engine.rank_group import RankGroup
from runtime.errors import EngineDeadError, ModelFormatError

LONG = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0.0)
NUM_MOMENTS = int(os.environ.get("RUNTIME_TEST_RANK_KILLS", "12"))
ERRORS_S, GONE_S = 2.0, 5.0
STEP = r"(in|after) step \d+|before the first step"


def start(model, **options):
    options = {"device": "cpu", "tensor_parallel_size": 2, "max_num_batched_tokens": 64, **options}
    return LLM(str(model), **options)


def failures(handles):
    """The error of each request, which must come within ERRORS_S of now."""
    deadline = time.monotonic() + ERRORS_S
    found = []
    for handle in handles:
        with pytest.raises(EngineDeadError) as error:
            handle.result(max(deadline - time.monotonic(), 0.01))
        found.append(str(error.value))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    shared = set(os.listdir("/dev/shm"))
    yield
    assert wait_until(lambda: not rank_pids(), GONE_S)
    assert wait_until(lambda: set(os.listdir("/dev/shm")) <= shared)


def kill_while_starting(model, delay_s):
    killed = []

    def kill():
        assert wait_until(rank_pids, 20)
        time.sleep(delay_s)
        killed.append(time.monotonic())
        os.kill(rank_pids()[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(EngineDeadError, match=r"rank 1 \(process \d+\) was killed by SIGKILL (while|before)"):
        start(model).generate("the", LONG)
    assert time.monotonic() - killed[0] < ERRORS_S
    thread.join()


def kill_while_serving(model, delay_s):
    with start(model) as llm:
        (pid,) = rank_pids()
        handles = [llm.submit([3 + i] * 40, LONG) for i in range(6)]
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        for text in failures(handles):
            assert re.search(rf"rank 1 \(process {pid}\) was killed by SIGKILL ({STEP})", text), text
        with pytest.raises(EngineDeadError, match="rank 1"):
            llm.submit("the", LONG)


def kill_while_draining(model, delay_s):
    llm = start(model)
    (pid,) = rank_pids()
    handle = llm.submit("the", LONG)
    threading.Timer(delay_s, lambda: runs(pid) and os.kill(pid, signal.SIGKILL)).start()
    llm.close()
    with pytest.raises(Exception, match=r"rank 1 \(process|the engine is closed"):
        handle.result(ERRORS_S)


def moments():
    """(stage, seconds into it), spread over the life of a rank."""
    seed = int(os.environ.get("RUNTIME_TEST_SEED", "0"))
    draw = random.Random(seed)
    stages = [
        (kill_while_starting, 0.0, 0.4),
        (kill_while_starting, 0.3, 1.2),
        (kill_while_serving, 0.0, 0.03),
        (kill_while_serving, 0.0, 0.4),
        (kill_while_serving, 0.0, 0.4),
        (kill_while_draining, 0.0, 0.02),
    ]
    for i in range(NUM_MOMENTS):
        kill, low, high = stages[i % len(stages)]
        yield pytest.param(kill, draw.uniform(low, high), id=f"{i}-{kill.__name__}")


@pytest.mark.parametrize("kill, delay_s", list(moments()))
def test_a_killed_rank(kill, delay_s, tiny_llama):
    kill(tiny_llama, delay_s)


def test_a_stopped_rank_is_named_within_the_step_timeout(tiny_llama):
    with start(tiny_llama, step_timeout=1.5) as llm:
        (pid,) = rank_pids()
        handle = llm.submit("the fox", LONG)
        next(iter(handle))
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineDeadError, match=rf"rank 1 \(process {pid}\) does not respond (in|after) step \d+"):
            handle.result(1.5 + ERRORS_S)


OUT_OF_TREE = """
import torch

from runtime.basemodel import register_model
from runtime.errors import ModelFormatError
from runtime.models.llama import LlamaTpPartModel

@register_model("{name}")
class Model(LlamaTpPartModel):
    def _init_custom(self):
        super()._init_custom()
        self.count = 0
        if self.tp_rank_ == 1 and "{name}" == "unloadable":
            raise ModelFormatError("config.json: rank 1 does not like it", hint="ask rank 0")

    def run(self, input_ids, infer_state):
        self.count += 1
        if self.tp_rank_ == 1 and self.count == 5:
            if "{name}" == "raising":
                raise ValueError("experts are out of luck")
            if "{name}" == "skipping":
                return torch.zeros(infer_state.batch_size, self.vocab_size)  # no collective of this step
            if "{name}" == "leaving":
                raise SystemExit(3)
        return super().run(input_ids, infer_state)
"""


@pytest.fixture
def out_of_tree(tmp_path, tiny_llama, monkeypatch):
    """Makes a checkpoint of a family that only a module outside the package knows."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def make(name):
        folder = tmp_path / name
        shutil.copytree(tiny_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": name}))
        (tmp_path / f"{name}_family.py").write_text(OUT_OF_TREE.format(name=name))
        monkeypatch.syspath_prepend(tmp_path)
        __import__(f"{name}_family")
        del sys.modules[f"{name}_family"]
        return folder

    return make


def test_the_exception_of_a_rank_is_the_callers(out_of_tree):
    with start(out_of_tree("raising")) as llm:
        handles = [llm.submit([3 + i] * 9, LONG) for i in range(3)]
        for handle in handles:
            with pytest.raises(EngineDeadError, match="rank 1 failed in step 5: ValueError: experts are out of luck"):
                handle.result(20)


def test_a_rank_that_makes_another_call_is_named(out_of_tree):
    with start(out_of_tree("skipping")) as llm:
        with pytest.raises(EngineDeadError, match="rank 1 .*(all_gather|broadcast)"):
            llm.submit([3] * 9, LONG).result(20)


def test_a_rank_that_leaves_is_named(out_of_tree):
    with start(out_of_tree("leaving")) as llm:
        with pytest.raises(EngineDeadError, match="rank 1 failed in step 5: SystemExit: 3"):
            llm.submit([3] * 9, LONG).result(20)


def test_a_rank_that_gets_another_plan_stops_the_group(tiny_llama, monkeypatch):
    publish, published = RankGroup.publish, []

    def repeating(self, buffer):
        published.append(buffer)
        publish(self, published[5] if len(published) == 7 else buffer)

    monkeypatch.setattr(RankGroup, "publish", repeating)
    both = r"rank 1 is at step 7 with decision hash [0-9a-f]{16} and rank 0 at step 6 with decision hash [0-9a-f]{16}"
    with start(tiny_llama) as llm:
        with pytest.raises(EngineDeadError, match=both):
            llm.submit([3] * 9, LONG).result(20)


def test_an_error_on_rank_0_ends_the_others(tiny_llama):
    class Failing(ModelRunner):
        def launch(self, buffer):
            step = super().launch(buffer)
            if step.number == 9:
                raise RuntimeError("kernel 7 has failed")
            return step

    llm = LLM._with_knobs(Knobs(runner_class=Failing), str(tiny_llama), device="cpu", tensor_parallel_size=2)
    (pid,) = rank_pids()
    with pytest.raises(EngineDeadError, match="kernel 7 has failed"):
        llm.submit("the", LONG).result(20)
    assert wait_until(lambda: not runs(pid), 1.0)
    llm.close()


def test_what_a_rank_refuses_at_the_start_is_raised_as_it_is(out_of_tree):
    with pytest.raises(ModelFormatError, match="rank 1: config.json: rank 1 does not like it") as error:
        start(out_of_tree("unloadable"))
    assert error.value.hint == "ask rank 0"


def test_a_family_of_the_program_itself_is_refused(tmp_path, out_of_tree):
    model = out_of_tree("raising")
    script = tmp_path / "program.py"
    script.write_text(
        (tmp_path / "raising_family.py").read_text()
        + f"from runtime import LLM\nLLM({str(model)!r}, device='cpu', tensor_parallel_size=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "ConfigError: Model is defined in the program itself" in done.stderr


def test_no_rank_outlives_rank_0(tiny_llama):
    script = (
        "import time; from runtime import LLM\n"
        f"llm = LLM({str(tiny_llama)!r}, device='cpu', tensor_parallel_size=2)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready\n"
    pids = rank_pids(program.pid)
    assert len(pids) == 1 and runs(pids[0])
    program.kill()
    program.communicate()
    assert all_gone(pids)


def test_ctrl_c_is_for_rank_0_alone(tiny_llama):
    script = (
        "import signal\n"
        "from runtime import LLM, SamplingParams\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts without
        f"llm = LLM({str(tiny_llama)!r}, device='cpu', tensor_parallel_size=2)\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    llm.generate(['the'] * 8, SamplingParams(max_tokens=250, ignore_eos=True))\n"
        "except KeyboardInterrupt:\n"
        "    print(len(llm.generate('fox', SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids))\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout.readline() == "ready\n"
    os.killpg(program.pid, signal.SIGINT)
    assert program.communicate(timeout=60)[0] == "5\n"


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="may not mount file systems"
)
def test_too_little_shared_memory_is_one_sentence(tiny_llama):
    script = f"from runtime import LLM\nLLM({str(tiny_llama)!r}, device='cpu', tensor_parallel_size=2)"
    mounted = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "Error" in line]
    assert len(said) == 1 and re.search(r"CapacityError: .* needs .* MiB in /dev/shm, .* --shm-size", said[0]), said


def test_drills_without_an_engine(tmp_path):
    """The tool that does such things by hand, and what an NCCL that is absent or of another version is met with."""
    tool, log = Path(__file__).parents[2] / "tools" / "rank_faults.py", tmp_path / "log.md"
    chosen = "nccl_absent,nccl_of_two_versions" if shutil.which("cc") else "nccl_absent"
    command = [sys.executable, tool, "--only", chosen, "--log", log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert log.read_text().count("| yes |") == len(chosen.split(","))


def test_the_worker_says_what_it_is_for():
    done = subprocess.run([sys.executable, "-m", "runtime.worker"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("runtime.errors.ConfigError: this process was not started by a laun")
