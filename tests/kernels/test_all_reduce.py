"""One rank's part of an all-reduce, with what the others write already there; test_tp_group.py has real groups."""

import os
import random
import signal

import pytest
import torch
from harness import DTYPES, assert_close, poisoned, randn, strided

from runtime.kernels import reference
from runtime.kernels.all_reduce import all_reduce
from runtime.kernels.all_reduce_norm import all_reduce_norm
from runtime.kernels.peer_memory import BITS, EMPTY, PeerMemory

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks' memory is the host's here")
HIDDEN = 72


class Group:
    """The ranks' memory, which forked processes share."""

    def __init__(self, size, num_rows=5, row_bytes=4 * HIDDEN + 16):
        num_bytes = PeerMemory.num_bytes(size, num_rows, row_bytes)
        self.memory = torch.full((size, num_bytes), 0xFF, dtype=torch.uint8).share_memory_()
        self.abort_word = torch.zeros(1, dtype=torch.int32).share_memory_()
        words = torch.tensor([*(part.data_ptr() for part in self.memory), self.abort_word.data_ptr()])
        self.ranks = [
            PeerMemory(rank, size, row_bytes, words, torch.zeros(num_rows, dtype=torch.int32)) for rank in range(size)
        ]

    def push(self, x, rank, two_shot):
        """What the ranks but `rank` write to it: their x, but for rows of another owner the owner's sum."""
        for row in range(x.shape[1]):
            half, owner = int(self.ranks[rank].turns[row]), row % len(x)
            slots = self.ranks[rank].host_view(rank, x.dtype)[half, :, row, : x.shape[2]]
            for source in range(len(x)):
                if two_shot and owner != rank and source == owner:
                    slots[source] = in_rank_order(x[:, row])
                elif source != rank and (not two_shot or owner == rank):
                    slots[source] = x[source, row]


def in_rank_order(x):
    total = torch.zeros(x.shape[1:])
    for part in x:
        total += part.float()
    return total.to(x.dtype)


@pytest.mark.parametrize("two_shot", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, size", [(0, 2), (1, 2), (2, 4)])
def test_sums_in_rank_order(rank, size, dtype, two_shot):
    """Call after call: each takes its turn, and leaves its half empty for the call after the next."""
    group = Group(size)
    for seed, num_rows in enumerate((3, 5, 1)):
        x = randn(size, num_rows, HIDDEN, dtype=dtype, seed=seed)
        group.push(x, rank, two_shot)
        assert torch.equal(all_reduce(x[rank], group.ranks[rank], two_shot=two_shot), in_rank_order(x))
        assert (group.ranks[rank].host_view(rank, BITS[dtype]) == EMPTY).all()
    assert group.ranks[rank].turns.tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("two_shot", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_writes_to_the_others_what_the_reference_writes(rank, two_shot):
    x, groups = randn(3, 4, HIDDEN, dtype=torch.bfloat16), [Group(3), Group(3)]
    for group, op in zip(groups, (all_reduce, reference.all_reduce)):
        group.push(x, rank, two_shot)
        op(x[rank], group.ranks[rank], two_shot=two_shot)
    assert torch.equal(groups[0].memory, groups[1].memory)
    assert (groups[0].memory != 0xFF).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias, two_shot", [(False, False), (True, False), (False, True)])
def test_norm_matches_reference(dtype, with_bias, two_shot):
    x, residual = randn(2, 3, HIDDEN, dtype=dtype), randn(3, HIDDEN, dtype=dtype, seed=1)
    weight = 1 + randn(HIDDEN, dtype=dtype, seed=2, scale=0.1)
    bias = randn(HIDDEN, dtype=dtype, seed=3) if with_bias else None
    expected_residual, outs = residual.clone(), []
    for op, r in ((all_reduce_norm, residual), (reference.all_reduce_norm, expected_residual)):
        group = Group(2)
        group.push(x, 1, two_shot)
        outs.append(op(x[1], r, weight, bias, 1e-5, group.ranks[1], two_shot=two_shot))
    assert_close(*outs)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("norm", [reference.rms_norm, reference.layer_norm])
def test_norm_is_that_of_the_separate_ops(norm):
    """Bit for bit but for the order of the norm's own sums: a model may take either by size."""
    x, residual, weight = randn(2, 3, HIDDEN), randn(3, HIDDEN, seed=1), randn(HIDDEN, seed=2)
    bias = [randn(HIDDEN, seed=3)] if norm is reference.layer_norm else []
    expected_residual = residual.clone()
    expected = norm(in_rank_order(x), expected_residual, weight, *bias, 1e-5)
    group = Group(2)
    group.push(x, 0, False)
    assert_close(all_reduce_norm(x[0], residual, weight, *(bias or [None]), 1e-5, group.ranks[0]), expected)
    assert torch.equal(residual, expected_residual)


def test_reads_and_writes_strided_rows():
    x, residual, weight, group = randn(2, 3, HIDDEN), randn(3, HIDDEN, seed=1), randn(HIDDEN, seed=2), Group(2)
    expected = reference.rms_norm(in_rank_order(x), residual.clone(), weight, 1e-5)
    group.push(x, 0, False)
    out = strided(poisoned(3, HIDDEN), pad=1)
    all_reduce_norm(strided(x[0]), strided(residual, pad=7), weight, None, 1e-5, group.ranks[0], out=out)
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_looks_like_nothing_arrives_as_nan(dtype):
    x, group = torch.full((2, 1, HIDDEN), EMPTY, dtype=BITS[dtype]).view(dtype), Group(2)
    group.push(torch.ones(2, 1, HIDDEN, dtype=dtype), 0, False)
    assert all_reduce(x[0], group.ranks[0]).isnan().all()
    sent = group.ranks[0].host_view(1, dtype)[0, 0, 0, :HIDDEN]
    assert sent.isnan().all() and (sent.view(BITS[dtype]) != EMPTY).all()


def test_a_failed_group_is_not_waited_for():
    group = Group(2)
    group.abort_word.fill_(1)
    all_reduce(randn(1, 8), group.ranks[0])


def _take_part(rank, group, num_calls):
    """A rank of its own process: calls of random sizes and ways, the same on all ranks."""
    signal.alarm(60)
    torch.set_num_threads(1)
    size, chosen = len(group.ranks), random.Random(0)
    for seed in range(num_calls):
        x = randn(size, chosen.randint(1, 3), 8, seed=seed)
        out = all_reduce(x[rank], group.ranks[rank], two_shot=chosen.random() < 0.5)
        assert torch.equal(out, in_rank_order(x)), f"call {seed} on rank {rank}"


def test_ranks_that_run_at_once():
    group, processes = Group(3), []
    for rank in range(3):
        if not (process := os.fork()):
            try:
                _take_part(rank, group, num_calls=12)
                os._exit(0)
            finally:
                group.abort_word.fill_(1)
                os._exit(1)
        processes.append(process)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0, 0]
    assert (group.memory == 0xFF).all()


def test_no_tokens():
    group = Group(2)
    assert all_reduce(randn(0, HIDDEN), group.ranks[0]).shape == (0, HIDDEN)
    assert reference.all_reduce(randn(0, HIDDEN), group.ranks[0]).shape == (0, HIDDEN)


@pytest.mark.parametrize(
    "shape, dtype, holds",
    [
        ((5, HIDDEN), torch.float32, True),
        ((6, HIDDEN), torch.bfloat16, False),
        ((5, 2 * HIDDEN + 16), torch.bfloat16, False),
        ((5,), torch.float32, False),
        ((5, HIDDEN), torch.int32, False),
    ],
)
def test_what_peer_memory_holds(shape, dtype, holds):
    assert Group(2).ranks[0].holds(torch.empty(shape, dtype=dtype)) is holds
