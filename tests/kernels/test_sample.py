"""`sample` in both forms: behaviour against oracles written here, the kernel against the reference."""

import numpy as np
import pytest
import torch
from harness import gpu, randn
from plans import allocate, build_plan

from runtime.kernels import reference
from runtime.kernels import reference_sampling as rs
from runtime.kernels import step_plan as sp
from runtime.kernels.sample import sample
from runtime.kernels.step_state import SampleWorkspace

OPS = [pytest.param(reference.sample, id="reference"), pytest.param(sample, id="kernel")]
# hundreds of rows: too slow in the interpreter
STATISTICS = pytest.mark.parametrize(
    "op", [OPS[0], pytest.param(sample, id="kernel", marks=pytest.mark.gpu)], indirect=True
)
FILTERED = {"top_k", "top_p", "min_p"}
PENALISED = {"presence_penalty", "frequency_penalty", "repetition_penalty"}
FLAGS = {"logit_bias": sp.LOGIT_BIAS, "allowed_ids": sp.ALLOWED, "masked_ids": sp.MIN_TOKENS}


@pytest.fixture(params=OPS)
def op(request):
    return request.param


class Step:
    """A decode step whose batch row i is request slot `slots[i]`, with the fields of its new_rows record."""

    def __init__(self, device, logits, records, *, seq_lens=None, slots=None, max_model_len=64):
        batch, vocab_size = logits.shape
        slots = slots or list(range(batch))[::-1]
        rows, inputs, outputs = allocate(
            "cpu", max_num_seqs=max(slots) + 1, vocab_size=vocab_size, max_model_len=max_model_len
        )
        new_rows = [{"row": slot, "flags": self.flags(record), **record} for slot, record in zip(slots, records)]
        seq_lens = seq_lens or [len(record.get("known_ids", [1])) for record in records]
        steps = [(slot, seq_len - 1, 1, sp.ROW_SAMPLE) for slot, seq_len in zip(slots, seq_lens)]
        plan = build_plan(rows=steps, num_decode_rows=batch, new_rows=new_rows)
        reference.prepare_step(plan, rows, inputs)
        self.slots, self.seq_lens, self.logits = slots, seq_lens, logits.to(device)
        self.rows, self.inputs, self.outputs = (group.to(device) for group in (rows, inputs, outputs))

    @staticmethod
    def flags(record):
        flags = sp.GREEDY if record.get("temperature", 0.0) == 0.0 else 0
        flags |= sp.FILTER if record.keys() & FILTERED else 0
        flags |= sp.PENALTIES if record.keys() & PENALISED else 0
        flags |= sp.LOGPROBS if "num_logprobs" in record else 0
        return flags | sum(bit for name, bit in FLAGS.items() if name in record)

    def run(self, op, **options):
        op(self.logits, self.rows, self.inputs, self.outputs, **options)
        return self.outputs.token_ids[: len(self.slots)].tolist()


def tokens(op, device, logits, *records, **options):
    return Step(device, torch.as_tensor(logits, dtype=torch.float32), records, **options).run(op)


@pytest.mark.parametrize("greedy_only", [False, True])
def test_greedy_takes_the_lowest_of_equal_logits_and_appends_it(op, greedy_only, device):
    logits = torch.full((3, 9000), -5.0)  # three chunks
    logits[0, [7, 8, 5000]] = 2.0
    logits[1, [4095, 4096, 8999]] = -1.0
    logits[2, 8999] = 0.5
    step = Step(device, logits, [{}] * 3, seq_lens=[3, 63, 64])
    assert step.run(op, greedy_only=greedy_only) == [7, 4095, 8999]
    assert step.rows.last_token.tolist()[:3] == [8999, 4095, 7]
    assert step.rows.token_ids[2, 3].item() == 7 and step.rows.token_ids[1, 63].item() == 4095


@pytest.mark.parametrize("greedy_only", [False, True])
def test_rows_that_are_not_sampled_are_left_alone(op, greedy_only, device):
    step = Step(device, randn(3, 40), [{}] * 3)
    step.inputs.row_flags[1] = sp.ROW_HOST_TOKENS
    last_tokens = step.rows.last_token.clone()
    result = step.run(op, greedy_only=greedy_only)
    assert result[1] == -1 and min(result[0], result[2]) >= 0
    assert step.rows.last_token[1] == last_tokens[1]


def test_half_precision_logits(op, device):
    logits = randn(2, 5000).bfloat16()
    assert Step(device, logits, [{}] * 2).run(op) == logits.float().argmax(-1).tolist()


def test_a_seed_gives_the_same_token_in_any_batch(op, device):
    logits = randn(8, 300)
    logits[5] = logits[2]
    records = [dict(temperature=0.9, seed=i * 2**40 + 11) for i in range(8)]
    records[3] |= dict(top_p=0.6, top_k=17)
    alone = [tokens(op, device, logits[i : i + 1], records[i]) for i in range(8)]
    assert tokens(op, device, logits, *records) == sum(alone, [])
    order = [5, 1, 7, 3, 0]
    expected = sum((alone[i] for i in order), [])
    assert tokens(op, device, logits[order], *(records[i] for i in order), slots=[9, 2, 0, 5, 1]) == expected


def test_logprobs_are_the_same_bits_in_any_batch(op, device):
    logits = randn(5, 4099, scale=3.0)
    records = [dict(temperature=0.9, seed=i, num_logprobs=2 * i, top_p=0.7) for i in range(5)]
    together = Step(device, logits, records)
    together.run(op)
    for i in (0, 3, 4):
        alone = Step(device, logits[i : i + 1], records[i : i + 1])
        alone.run(op)
        assert torch.equal(alone.outputs.logprobs[0], together.outputs.logprobs[i])
        assert torch.equal(alone.outputs.logprob_ids[0], together.outputs.logprob_ids[i])


def test_noise_depends_on_seed_and_position(op, device):
    logits = torch.zeros(1, 1000)

    def draw(seed, position):
        return tokens(op, device, logits, dict(temperature=1.0, seed=seed), seq_lens=[position])[0]

    drawn = {draw(seed, position) for seed in (0, 1, 2**32, -1) for position in (1, 2, 60)}
    assert len(drawn) > 9 and draw(5, 7) == draw(5, 7)


def frequencies(op, device, line, count=400, **record):
    """Share of each id among `count` rows with seeds of their own."""
    logits = torch.as_tensor(line, dtype=torch.float32).expand(count, -1)
    drawn = tokens(op, device, logits, *(dict(temperature=1.0, seed=s) | record for s in range(count)))
    return np.bincount(drawn, minlength=len(line)) / count


@STATISTICS
def test_tokens_are_drawn_from_the_softmax(op, device):
    p = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        assert np.abs(frequencies(op, device, np.log(p)) - p).max() < 0.08  # 3 standard deviations of 400 draws
        sharp = p**2 / (p**2).sum()
        assert np.abs(frequencies(op, device, np.log(p), temperature=0.5) - sharp).max() < 0.08


def support(op, device, line, **record):
    return np.flatnonzero(frequencies(op, device, line, count=150, **record)).tolist()


@STATISTICS
def test_filters_keep_what_they_should(op, device):
    line = np.log([0.05, 0.4, 0.1, 0.25, 0.2])
    assert support(op, device, line, top_k=2) == [1, 3]
    assert support(op, device, line, top_k=9) == [0, 1, 2, 3, 4]
    assert support(op, device, line, top_p=0.6) == [1, 3]
    assert support(op, device, line, top_p=0.66) == [1, 3, 4]
    assert support(op, device, line, min_p=0.45) == [1, 3, 4]
    # top_p counts what top_k left: 0.4 / 0.65 reaches 0.6 alone
    assert support(op, device, line, top_k=2, top_p=0.6) == [1]
    assert support(op, device, line, min_p=0.45, top_p=0.8) == [1, 3, 4]
    # the temperature comes first: squared and normalised, 0.4 has 0.57 and 0.25 has 0.22
    assert support(op, device, line, temperature=0.5, top_p=0.7) == [1, 3]
    assert support(op, device, line, top_p=1e-6) == [1]


@STATISTICS
def test_equal_logits_at_the_threshold_are_all_kept(op, device):
    assert support(op, device, [1.0, 3.0, 1.0, 1.0, -9.0], top_k=2) == [0, 1, 2, 3]
    assert support(op, device, [0.0] * 6, top_p=0.1) == [0, 1, 2, 3, 4, 5]


PENALTIES = [
    (dict(presence_penalty=1.5), lambda x, seen, count: x - 1.5 * (count > 0)),
    (dict(frequency_penalty=0.75), lambda x, seen, count: x - 0.75 * count),
    (dict(repetition_penalty=2.5), lambda x, seen, count: np.where(seen, np.where(x > 0, x / 2.5, x * 2.5), x)),
    (
        dict(repetition_penalty=2.5, frequency_penalty=-1.0),
        lambda x, seen, count: np.where(seen, np.where(x > 0, x / 2.5, x * 2.5), x) + count,
    ),
]


@pytest.mark.parametrize("penalties, edit", PENALTIES, ids=["presence", "frequency", "repetition", "two"])
def test_penalties(op, penalties, edit, device):
    """Each row lifts an id that was not seen by another bias: the tokens tell the processed logits from above."""
    logits = torch.tensor([[2.0, -1.0, 1.0, 1.0, 0.5, 0.0]])
    seen, count = np.array([1, 1, 1, 1, 0, 0], dtype=bool), np.array([0, 1, 1, 2, 0, 0])
    biases = [-1.0, 0.4, 0.6, 0.9, 1.1, 1.9, 2.1, 3.5]
    record = dict(known_ids=[0, 0, 1, 2, 3, 3], prompt_len=2) | penalties
    records = [record | dict(logit_bias=[(5, bias)]) for bias in biases]
    expected = [int(np.argmax(edit(logits[0].numpy() + np.eye(6)[5] * bias, seen, count))) for bias in biases]
    assert tokens(op, device, logits.expand(len(biases), -1), *records) == expected


def test_a_bias_of_minus_infinity_bans_an_id(op, device):
    """Whatever else its row asks for, although it is the likeliest."""
    logits = torch.full((1, 5000), -4.0)
    logits[0, 4100], logits[0, 7] = 9.0, 2.0
    penalties = dict(repetition_penalty=1.5, presence_penalty=-1.0, known_ids=[4100, 7, 4100], prompt_len=1)
    filters = dict(temperature=0.3, seed=1, top_k=2, top_p=0.9, min_p=0.01)
    for more in ({}, penalties, filters, filters | penalties, dict(allowed_ids=[7, 4100])):
        record = dict(temperature=0.0, logit_bias=[(4100, -float("inf"))]) | more
        assert tokens(op, device, logits, record, seq_lens=[3]) == [7]


def test_bias_allowed_ids_and_min_tokens(op, device):
    logits = torch.zeros(1, 5000)
    logits[0, [10, 20, 4999]] = torch.tensor([3.0, 2.0, 1.0])
    assert tokens(op, device, logits, dict(logit_bias=[(20, 1.5), (10, -0.25)])) == [20]
    assert tokens(op, device, logits, dict(allowed_ids=[4999, 20])) == [20]
    assert tokens(op, device, logits, dict(allowed_ids=[4999, 31])) == [4999]
    too_short = dict(masked_ids=[10, 20], min_tokens=3, prompt_len=4)
    assert tokens(op, device, logits, too_short, seq_lens=[6]) == [4999]
    assert tokens(op, device, logits, too_short, seq_lens=[7]) == [10]
    # a bias does not bring a masked id back
    assert tokens(op, device, logits, too_short | dict(logit_bias=[(10, 99.0)]), seq_lens=[6]) == [4999]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_the_raw_logits(op, dtype, device):
    logits = randn(4, 5000, scale=3.0).to(dtype)
    logits[0, [17, 4100, 33]] = 20.0
    wanted = [3, 0, 20]
    records = [dict(temperature=0.0, num_logprobs=n, logit_bias=[(8, 100.0)]) for n in wanted] + [{}]
    step = Step(device, logits, records)
    chosen = step.run(op)
    assert chosen[:3] == [8, 8, 8]
    expected = logits.double().log_softmax(-1)
    values, ids = step.outputs.logprobs.cpu(), step.outputs.logprob_ids.cpu()
    for i, n in enumerate(wanted):
        assert ids[i, 0] == 8
        torch.testing.assert_close(values[i, 0].double(), expected[i, 8], atol=2e-5, rtol=0)
        order = sorted(range(5000), key=lambda t: (-logits[i, t].item(), t))[:n]
        assert ids[i, 1:].tolist() == order + [-1] * (20 - n)
        torch.testing.assert_close(values[i, 1 : 1 + n].double(), expected[i, order], atol=2e-5, rtol=0)
        assert torch.isneginf(values[i, 1 + n :]).all()
    assert ids[3].tolist() == [-1] * 21  # asked for none


def random_records(batch, vocab_size, seed):
    generator = np.random.default_rng(seed)
    optional = dict(
        top_k=lambda: int(generator.integers(1, 60)),
        top_p=lambda: float(generator.uniform(0.05, 1)),
        min_p=lambda: float(generator.uniform(0, 0.3)),
        presence_penalty=lambda: float(generator.uniform(-2, 2)),
        frequency_penalty=lambda: float(generator.uniform(-2, 2)),
        repetition_penalty=lambda: float(generator.uniform(0.5, 2)),
        num_logprobs=lambda: int(generator.integers(0, 21)),
        logit_bias=lambda: [(int(t), float(generator.normal())) for t in generator.permutation(vocab_size)[:300]],
        allowed_ids=lambda: generator.permutation(vocab_size)[: vocab_size // 2].tolist(),
        masked_ids=lambda: generator.integers(0, vocab_size, 60).tolist(),
    )
    for _ in range(batch):
        record = dict(
            temperature=float(generator.choice([0.0, 0.3, 1.0, 1.5])),
            seed=int(generator.integers(-(2**63), 2**63)),
            prompt_len=int(generator.integers(1, 20)),
            min_tokens=int(generator.integers(0, 30)),
            known_ids=generator.integers(0, vocab_size, int(generator.integers(20, 60))).tolist(),
        )
        yield record | {name: make() for name, make in optional.items() if generator.random() < 0.35}


LIMITS = [
    *(dict(top_k=k) for k in (1, 2, 40, 499, 500, 9999)),
    *(dict(top_p=p) for p in (1e-6, 0.2, 0.9, 0.99, 1.0)),
    *(dict(min_p=p) for p in (1e-30, 0.01, 0.5, 1.0)),
    *(dict(top_k=40, top_p=0.9), dict(min_p=0.05, top_p=0.5), dict(top_k=30, min_p=0.02, top_p=0.95)),
    *(dict(top_p=0.95, temperature=t) for t in (0.01, 5.0)),
]


@pytest.mark.parametrize("vocab_size, scale", [(500, 3.0), (9001, 1.0), gpu(128256, 1.0), gpu(128256, 4.0)])
def test_thresholds_match_the_sorted_ones(vocab_size, scale, device):
    """9001 ids of scale 1: more than MAX_CANDIDATES lie above some thresholds, and the whole row is searched."""
    records = [dict(temperature=0.8, seed=i) | limits for i, limits in enumerate(LIMITS)]
    logits = randn(len(LIMITS), vocab_size, scale=scale)
    step = Step(device, logits, records)
    workspace = SampleWorkspace.allocate(max_num_seqs=len(LIMITS), vocab_size=vocab_size, device=device)
    step.run(sample, workspace=workspace)
    largest, least = workspace.thresholds.cpu()[: len(LIMITS)].double().unbind(1)
    state, row = step.rows.to("cpu").views, np.array(step.slots)
    inverse = 1 / state.temperature[row]
    expected = rs.filter_thresholds(logits.numpy(), inverse[:, None], row, state)
    kept = (logits.double() - largest[:, None]) * torch.from_numpy(inverse)[:, None] >= least[:, None]
    wanted = logits >= torch.from_numpy(expected)[:, None]
    # what differs carries nothing: ids 30 temperatures below the best, or one at the rounding of a mass
    differs = (kept != wanted) & ((logits.double() - largest[:, None]) * torch.from_numpy(inverse)[:, None] > -30)
    assert differs.sum(-1).max() <= 1
    assert (differs.sum(-1) > 0).sum() <= 2, differs.sum(-1)


@pytest.mark.parametrize("batch, vocab_size, scale", [(12, 500, 2.0), (4, 4100, 1.0), gpu(256, 128256, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_matches_reference(batch, vocab_size, scale, dtype, device):
    logits = randn(batch, vocab_size, scale=scale).to(dtype)
    records = list(random_records(batch, vocab_size, seed=vocab_size))
    step, expected = (Step(where, logits, records) for where in (device, "cpu"))
    step.run(sample)
    expected.run(reference.sample)
    # the logarithms differ in their last bits: two scores that near may change places
    same = step.outputs.token_ids.cpu() == expected.outputs.token_ids
    assert same.float().mean() >= 0.98, (step.outputs.token_ids, expected.outputs.token_ids)
    lines = same[:batch].nonzero()[:, 0]
    ids, expected_ids = step.outputs.logprob_ids.cpu()[lines], expected.outputs.logprob_ids[lines]
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(step.outputs.logprobs.cpu()[lines], expected.outputs.logprobs[lines], atol=3e-5, rtol=0)
    assert torch.equal(step.logits.cpu(), logits)


def test_a_workspace_is_clean_after_a_step(device):
    logits, records = randn(4, 200), list(random_records(4, 200, seed=3))
    for record in records:
        record |= dict(frequency_penalty=1.0)
    workspace = SampleWorkspace.allocate(max_num_seqs=6, vocab_size=200, device=device)
    first = Step(device, logits, records).run(sample, workspace=workspace)
    assert not workspace.counts.any()
    assert Step(device, logits, records).run(sample, workspace=workspace) == first


def test_gumbel_noise_has_its_moments():
    noise = rs.gumbel_noise(np.arange(50), np.arange(50) * 3, 20000)
    assert abs(noise.mean() - np.euler_gamma) < 0.005 and abs(noise.var() - np.pi**2 / 6) < 0.01
    assert np.abs(np.corrcoef(noise) - np.eye(50)).max() < 0.04
    assert np.isfinite(noise).all()


@pytest.mark.gpu
@pytest.mark.parametrize("greedy_only", [False, True])
def test_a_captured_graph_draws_new_tokens(greedy_only, device):
    step = Step(device, randn(8, 128256), [dict(temperature=0.0 if greedy_only else 1.0, seed=3)] * 8)
    workspace = SampleWorkspace.allocate(max_num_seqs=8, vocab_size=128256, device=device, greedy_only=greedy_only)
    step.run(sample, greedy_only=greedy_only, workspace=workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(step.logits, step.rows, step.inputs, step.outputs, greedy_only=greedy_only, workspace=workspace)
    for seed in range(3):
        step.logits.copy_(randn(8, 128256, seed=seed))
        step.inputs.b_seq_len.fill_(20 + seed)
        graph.replay()
        replayed = step.outputs.token_ids.tolist()
        step.run(sample, greedy_only=greedy_only)
        assert step.outputs.token_ids.tolist() == replayed
