"""Decode graphs: buckets and padding; on the CPU a replay calls what would have been captured."""

from types import SimpleNamespace

import pytest

from runtime import LLM, SamplingParams
from runtime.engine import Knobs
from runtime.engine.cuda_graphs import DecodeGraphs, batch_buckets
from runtime.engine.model_runner import ModelRunner

PROMPTS = [[5 + i, 6, 7, 8 + i] for i in range(9)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=12, logprobs=2, ignore_eos=True)


class CalledGraphs(DecodeGraphs):
    replayed: list[int] = []

    def record(self, function):
        return SimpleNamespace(replay=function)

    def replay_model(self, num_rows):
        self.replayed.append(num_rows)
        super().replay_model(num_rows)


class GraphRunner(ModelRunner):
    def make_graphs(self):
        return CalledGraphs(self, self._transfers.device_outputs(0))


class OneBufferRunner(GraphRunner):
    """All steps write the same outputs, as graphs do."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._transfers._outputs = [self._transfers._outputs[0]] * len(self._transfers._outputs)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8, 9, 64, 65, 80, 81, 256])
def test_buckets_hold_every_batch(limit):
    buckets = batch_buckets(limit)
    assert buckets == sorted(set(buckets)) and buckets[-1] == limit
    assert all(any(size <= bucket < size + 16 for bucket in buckets) for size in range(1, limit + 1))


def test_a_step_replays_the_smallest_bucket_that_holds_it():
    models, samplers = [], []
    runner = SimpleNamespace(
        max_num_seqs=20,
        model=SimpleNamespace(max_model_len=64),
        inputs=SimpleNamespace(input_ids=range(20)),
        infer_state=lambda *, num_rows, **_: num_rows,
        forward=lambda input_ids, num_rows: models.append((len(input_ids), num_rows)) or num_rows,
        sample=lambda num_rows, outputs, *, greedy_only: samplers.append((num_rows, greedy_only)),
    )
    graphs = CalledGraphs(runner, None)
    graphs.capture()
    for size, bucket in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)):
        graphs.replay_model(size)
        graphs.replay_sampler(size, greedy_only=size % 2 == 0)
        assert models[-1] == (bucket, bucket) and samplers[-1] == (bucket, size % 2 == 0)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 8, 9])
def test_results_at_bucket_edges_equal_eager(tiny_llama, batch):
    params = [SAMPLED if i % 3 == 2 else GREEDY for i in range(batch)]
    arguments = {"max_num_seqs": 9, "deterministic": True, "skip_tokenizer_init": True, "num_kv_blocks": 64}
    with LLM(str(tiny_llama), **arguments) as llm:
        expected = [out.outputs for out in llm.generate(PROMPTS[:batch], params)]
    CalledGraphs.replayed.clear()
    with LLM._with_knobs(Knobs(runner_class=OneBufferRunner), str(tiny_llama), **arguments) as llm:
        assert [out.outputs for out in llm.generate(PROMPTS[:batch], params)] == expected
    assert CalledGraphs.replayed.count(batch) >= 10
