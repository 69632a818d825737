"""`prepare_step` in both forms: the reference against words written by hand, the kernel against the reference."""

import pytest
import torch
from harness import gpu
from plans import allocate, build_plan

from runtime.kernels import reference
from runtime.kernels import step_plan as sp
from runtime.kernels.prepare_step import prepare_step

SAMPLE, HOST = sp.ROW_SAMPLE, sp.ROW_HOST_TOKENS
OPS = [pytest.param(reference.prepare_step, id="reference"), pytest.param(prepare_step, id="kernel")]


@pytest.fixture(params=OPS)
def prepare(request):
    return request.param


def test_decode_rows_take_their_last_token_and_prompts_come_from_the_host(prepare, device):
    rows, inputs, _ = allocate(device, max_num_seqs=4, block_size=4)
    rows.block_table[3, :3] = torch.tensor([9, 8, 7])
    plan = build_plan(
        rows=[(3, 9, 1, SAMPLE), (0, 2, 5, HOST), (1, 0, 2, HOST | SAMPLE)],
        num_decode_rows=1,
        tokens=[11, 12, 13, 14, 15, 21, 22],
        new_blocks=[(0, 0, 5), (0, 1, 6), (1, 0, 2)],
    )
    prepare(plan.to(device), rows, inputs)
    assert inputs.input_ids.tolist()[:9] == [73, 11, 12, 13, 14, 15, 21, 22, 0]  # last_token[3] is 73
    assert inputs.position_ids.tolist()[:9] == [9, 2, 3, 4, 5, 6, 0, 1, 0]
    slots = [7 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3, 6 * 4, 6 * 4 + 1, 6 * 4 + 2, 2 * 4, 2 * 4 + 1, 0]
    assert inputs.slot_mapping.tolist()[:9] == slots
    assert inputs.b_row.tolist() == [3, 0, 1, 4, 4]
    assert inputs.b_start_loc.tolist() == [0, 1, 6, 8, 8, 8]
    assert inputs.b_seq_len.tolist() == [10, 7, 2, 0, 0]
    assert inputs.row_flags.tolist() == [SAMPLE, HOST, HOST | SAMPLE, 0, 0]


def test_what_is_past_the_plan_is_padding(prepare, device):
    rows, inputs, _ = allocate(device, max_num_seqs=4, max_num_batched_tokens=32)
    prepare(build_plan().to(device), rows, inputs)
    for tensor in (inputs.input_ids, inputs.position_ids, inputs.slot_mapping, inputs.b_start_loc, inputs.row_flags):
        assert not tensor.any()
    assert not inputs.b_seq_len.any()
    assert inputs.b_row.tolist() == [4] * 5


def test_a_new_row_is_written_whole(prepare, device):
    rows, inputs, _ = allocate(device, max_num_seqs=4, vocab_size=100)
    rows.allowed_mask[1:3] = 5
    record = dict(
        row=2,
        epoch=7,
        flags=sp.PENALTIES | sp.ALLOWED,
        temperature=0.75,
        top_p=0.5,
        top_k=40,
        min_p=0.125,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        seed=-3 * 2**40 + 5,
        prompt_len=2,
        min_tokens=6,
        num_logprobs=4,
        score_start=1,
        known_ids=[31, 32, 33],
        logit_bias=[(5, 1.5), (99, -100.0)],
        allowed_ids=[0, 31, 32, 99, 31],
        masked_ids=[2, 3],
    )
    prepare(build_plan(new_rows=[record, dict(row=1, flags=sp.GREEDY)]).to(device), rows, inputs)
    scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("row", "epoch")}
    for name, value in scalars.items():
        assert getattr(rows, name)[2].item() == value, name
    assert rows.token_ids[2, :3].tolist() == [31, 32, 33]
    assert rows.num_bias.tolist()[1:3] == [0, 2] and rows.num_masked.tolist()[1:3] == [0, 2]
    assert rows.bias_ids[2, :2].tolist() == [5, 99] and rows.bias_values[2, :2].tolist() == [1.5, -100.0]
    assert rows.masked_ids[2, :2].tolist() == [2, 3]
    assert rows.allowed_mask[2].tolist() == [1 - 2**31, 1, 0, 8]
    assert rows.allowed_mask[1].tolist() == [-1] * 4
    assert rows.flags.tolist() == [0, sp.GREEDY, sp.PENALTIES | sp.ALLOWED, 0, 0]
    assert rows.temperature.tolist() == [77, 1, 0.75, 77, 77]  # other rows keep theirs


def random_plan(num_rows, max_num_seqs, max_model_len, block_size, max_tokens, generator):
    def random(low, high, size):
        return torch.randint(low, high, (size,), generator=generator).tolist()

    num_decode = num_rows // 2
    slots = torch.randperm(max_num_seqs, generator=generator)[:num_rows].tolist()
    scheduled = [1] * num_decode + random(1, max_tokens // num_rows, num_rows - num_decode)
    computed = [c % (max_model_len - s) for c, s in zip(random(0, max_model_len, num_rows), scheduled)]
    rows = [
        (r, c, s, SAMPLE if i < num_decode else HOST) for i, (r, c, s) in enumerate(zip(slots, computed, scheduled))
    ]
    blocks = [(r, i, r * 64 + i) for r, c, s, _ in rows for i in range(-(-(c + s) // block_size))]
    new_rows = [
        dict(
            row=r,
            flags=sp.ALLOWED * (r % 2),
            seed=r * 2**33 - 7,
            top_p=r / 1000.0,
            known_ids=random(0, 90, c),
            allowed_ids=random(0, 90, 7),
            masked_ids=random(0, 90, r % 60),
            logit_bias=[(i, i / 7.0) for i in range(r % 300)],
        )
        for r, c, _, _ in rows[num_decode:]
    ]
    tokens = random(0, 90, sum(scheduled[num_decode:]))
    return build_plan(rows, tokens, blocks, new_rows, num_decode_rows=num_decode)


@pytest.mark.parametrize(
    "num_rows, max_num_seqs, max_model_len, block_size, max_tokens",
    [(1, 1, 16, 1, 8), (5, 7, 64, 16, 40), gpu(256, 256, 8192, 16, 8192), gpu(3, 1000, 40000, 1, 20000)],
)
def test_kernel_matches_reference(num_rows, max_num_seqs, max_model_len, block_size, max_tokens, device):
    plan = random_plan(
        num_rows, max_num_seqs, max_model_len, block_size, max_tokens, torch.Generator().manual_seed(num_rows)
    )
    sizes = dict(
        max_num_seqs=max_num_seqs, max_model_len=max_model_len, block_size=block_size, max_num_batched_tokens=max_tokens
    )
    rows, inputs, _ = allocate(device, **sizes)
    expected_rows, expected_inputs, _ = allocate("cpu", **sizes)
    prepare_step(plan.to(device), rows, inputs)
    reference.prepare_step(plan, expected_rows, expected_inputs)
    for actual, expected in ((rows, expected_rows), (inputs, expected_inputs)):
        for name, tensor in vars(actual.to("cpu")).items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, getattr(expected, name)), name


@pytest.mark.gpu
def test_a_captured_graph_follows_the_plan(device):
    rows, inputs, _ = allocate(device)
    buffer = torch.zeros(4096, dtype=torch.int32, device=device)
    empty = build_plan()
    buffer[: len(empty)] = empty.to(device)
    prepare_step(buffer, rows, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepare_step(buffer, rows, inputs)
    plan = build_plan(rows=[(2, 4, 1, SAMPLE)], num_decode_rows=1, new_blocks=[(2, 1, 9)])
    buffer[: len(plan)] = plan.to(device)
    graph.replay()
    assert inputs.slot_mapping[0].item() == 36 and inputs.b_row.tolist()[:2] == [2, 4]
