"""What an engine records, `runtime simulate --replay` decides again."""

import json
import random
from pathlib import Path

import pytest

from runtime import LLM, SamplingParams
from runtime.cli.main import main
from runtime.engine import Knobs
from runtime.errors import ConfigError
from runtime.simulation import Settings, StepTimes, Workload, replay, simulate

RNG = random.Random(3)
PREFIX = [RNG.randrange(2, 384) for _ in range(24)]
PROMPTS = [PREFIX[: RNG.randrange(25)] + [RNG.randrange(2, 384) for _ in range(1 + i % 17)] for i in range(30)]


@pytest.fixture(scope="module")
def log(tiny_llama, tmp_path_factory):
    """Of an engine short of blocks, two steps ahead, with stops, aborts and a cleared cache."""
    path = tmp_path_factory.mktemp("logs") / "events"
    arguments = {"block_size": 4, "num_kv_blocks": 60, "max_model_len": 96, "max_num_batched_tokens": 40}
    with LLM._with_knobs(Knobs(num_steps_in_flight=2), str(tiny_llama), **arguments, event_log=path) as llm:
        params = [SamplingParams(seed=i, max_tokens=5 + i, stop=["e", "a"][: i % 3]) for i in range(len(PROMPTS))]
        handles = [llm.submit(prompt, one) for prompt, one in zip(PROMPTS, params)]
        handles[4].abort()
        for handle in handles[:10]:
            handle.result(60) if handle is not handles[4] else None
        llm.reset_prefix_cache()
        llm.generate(PROMPTS[:5], SamplingParams(n=2, temperature=0.0, repetition_penalty=1.3, max_tokens=9))
        assert llm.stats.num_preemptions > 0
    return path


def test_an_engine_replays(log):
    found = replay(log)
    assert found.problem is None
    assert found.figures["same"]
    assert found.figures["requests"] == len(PROMPTS) + 2 * 5
    assert found.figures["steps"] > 50
    assert found.figures["seconds"] > 0


def test_the_verb_prints_and_compares(log, tmp_path, capsys):
    assert main(["simulate", "--replay", str(log), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    damaged = tmp_path / "damaged"
    damaged.write_bytes(log.read_bytes()[:-3])
    assert main(["simulate", "--replay", str(damaged)]) == 1
    assert f"{damaged} is truncated: the frame at byte" in capsys.readouterr().err


def test_a_simulation_replays_and_a_difference_names_its_step(tmp_path, capsys):
    times = StepTimes(buckets=((1, 0.001, 0.0, 0.0),))
    workload = Workload(prompt=("uniform", 10, 90), output=("uniform", 1, 300), num_requests=2000, concurrency=40)
    path = tmp_path / "events"
    settings = Settings(step_times=times, num_blocks=400, max_num_seqs=32, event_log=str(path))
    steps = simulate(workload, settings).figures["steps"]
    assert replay(path).figures["steps"] == steps
    path.write_bytes(path.read_bytes()[:-1000])
    assert main(["simulate", "--replay", str(path)]) == 1
    captured = capsys.readouterr()
    assert "same         False" in captured.out
    assert "is truncated: the frame at byte" in captured.err


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is no event log: it does not begin with 'rt-event' and a version"),
        (b"rt-event\x07\0\0\0", "is an event log of version 7: this runtime reads version 4 (replay it with the"),
        (b"rt-event\x04\0\0\0", "there is no header"),
        (b"rt-event\x04\0\0\0\x05\0\0\0" + 13 * b"x", "is corrupted: the checksum of the 5 bytes of the frame at byte"),
    ],
)
def test_files_that_are_no_log_are_refused(tmp_path, content, sentence):
    path = tmp_path / "events"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        replay(path)
    assert sentence in str(refused.value)


def test_the_page_describes_the_version_that_is_written(log):
    version = int.from_bytes(log.read_bytes()[8:12], "little")
    page = (Path(__file__).parents[2] / "docs" / "event_log.md").read_text(encoding="utf-8")
    assert f"## Format, version {version}\n" in page


def test_a_log_that_cannot_be_written_is_refused(tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="cannot write .*No such file or directory"):
        LLM(str(tiny_llama), event_log=tmp_path / "no" / "events")
    with pytest.raises(ConfigError, match="event_log=3: must be the path of a file"):
        LLM(event_log=3)
    settings = Settings(
        step_times=StepTimes(buckets=((1, 1.0, 0.0, 0.0),)), num_blocks=9, num_replicas=2, event_log="x"
    )
    workload = Workload(prompt=("fixed", 2), output=("fixed", 2), num_requests=2, rate=1.0)
    with pytest.raises(ConfigError, match="event_log=x: must be empty for a fleet"):
        simulate(workload, settings)
