"""One rank of a group, run by test_tp_group.py: python tp_rank.py CASE RANK SIZE DEVICE, with the group's id on stdin.

Prints "joined" once it is in its group, then what the case returns; what fails raises.
"""

import sys


def collectives(group, device):
    """Every collective, dtype and kind of size, against the same computed from all ranks' inputs."""
    import torch

    def inputs(*shape, dtype):
        """Of every rank; integers whose sums float16 and bfloat16 hold exactly."""
        generator = torch.Generator().manual_seed(sum(shape))
        values = torch.randint(-20, 20, (group.size, *shape), generator=generator)
        return values.to(device, dtype)

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32):
        for shape in ((1,), (3, 5), (64, 1000), (700, 1001)):
            x = inputs(*shape, dtype=dtype)
            own = x[group.rank].clone()
            assert torch.equal(group.all_reduce(own), x.sum(0).to(dtype)), (dtype, shape)
            side_by_side = torch.cat(list(x), dim=-1)
            assert torch.equal(group.all_gather(x[group.rank]), side_by_side), (dtype, shape)
            for root in range(group.size):
                assert torch.equal(group.broadcast(x[group.rank].clone(), root), x[root]), (dtype, shape, root)
    transposed = inputs(6, 4, dtype=torch.float32).transpose(1, 2)
    assert torch.equal(group.all_reduce(transposed[group.rank]), transposed.sum(0))
    assert torch.equal(group.broadcast(transposed[group.rank], 1), transposed[1])
    group.barrier()
    group.poll()
    return "equal"


def rank_order(group, device):
    """Sums of floats whose order shows are those of rank order, in float32, for a group with deterministic=True."""
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((1, 64), (33, 4096)):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(group.size, *shape, generator=generator).to(device, dtype)
            expected = torch.zeros(shape, device=device)
            for part in x:
                expected += part
            assert torch.equal(group.all_reduce(x[group.rank].clone()), expected.to(dtype)), (dtype, shape)
    return "equal"


def captured(group, device):
    """A collective inside a CUDA graph, replayed on changing inputs."""
    import torch

    x = torch.empty(4096, device=device)
    group.all_reduce(x)  # NCCL connects at its first call of a kind
    group.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = group.all_reduce(x) * 2
    for value in range(20):
        x.fill_(value + group.rank)
        graph.replay()
        expected = 2 * (value * group.size + sum(range(group.size)))
        assert out.tolist() == [expected] * len(out), value
    return "equal"


def peer_sums(group, device):
    """Sums over peer memory: those of NCCL but for rounding, those of rank order exactly, the same on every rank."""
    import torch

    inputs = []
    for dtype, width in ((torch.bfloat16, 4096), (torch.float16, 1000), (torch.float32, 2048)):
        for num_rows in (1, 2, 7, 64):
            parts = torch.randn(group.size, num_rows, width, generator=torch.Generator().manual_seed(num_rows))
            inputs.append(parts.to(device, dtype))
    by_nccl = [group.all_reduce(parts[group.rank].clone()) for parts in inputs]
    group.barrier()
    group.reserve(64, 8192)
    assert group.peers is not None, "the GPUs cannot write to each other's memory"
    for parts, sum_by_nccl in zip(inputs, by_nccl):
        expected = sum(part.float() for part in parts).to(parts.dtype)
        torch.testing.assert_close(sum_by_nccl, expected, rtol=2e-2, atol=2e-2)
        for two_shot in (False, True):
            _check_peer_sum(group, parts, expected, two_shot)
        chosen = group.all_reduce(parts[group.rank].clone())
        group.barrier()
        assert torch.equal(chosen, expected)
    group.close()
    return "equal"


def _check_peer_sum(group, parts, expected, two_shot):
    """With RMSNorm, LayerNorm and none behind it; a barrier, which has a deadline, comes before each look."""
    import torch

    from runtime.kernels import ops

    x, (weight, bias) = parts[group.rank], parts[:2, 0]
    out = ops.all_reduce(x, group.peers.memory, two_shot=two_shot)
    group.barrier()
    assert torch.equal(out, expected)
    for norm, vectors in ((ops.rms_norm, [weight]), (ops.layer_norm, [weight, bias])):
        residual, expected_residual = parts[0].clone(), parts[0].clone()
        arguments = x, residual, weight, vectors[1] if len(vectors) > 1 else None, 1e-5, group.peers.memory
        out = ops.all_reduce_norm(*arguments, two_shot=two_shot)
        everywhere = group.all_gather(out).view(len(x), group.size, -1)
        group.barrier()
        torch.testing.assert_close(out, norm(expected, expected_residual, *vectors, 1e-5), rtol=2e-2, atol=2e-2)
        assert torch.equal(residual, expected_residual)
        assert torch.equal(everywhere, everywhere[:, :1].expand_as(everywhere))


def peer_sums_captured(group, device):
    """Graphs of two sizes, replayed in turn 1000 times on changing inputs, by ranks that are late in turn."""
    import torch

    from runtime.kernels import ops

    group.reserve(64, 8192)
    step, num_wrong = (torch.zeros((), dtype=torch.int64, device=device) for _ in "sw")

    def work(num_rows):
        """Sums of small integers that depend on step, row and rank, which bfloat16 holds exactly."""
        row = torch.arange(num_rows, device=device)[:, None] % 8 + step % 16
        expected = (group.size * row + sum(range(group.size))).expand(num_rows, 4096)
        x = (row + group.rank).to(torch.bfloat16).expand(num_rows, 4096).contiguous()
        for two_shot in (False, True, True, False):
            num_wrong.add_((ops.all_reduce(x, group.peers.memory, two_shot=two_shot) != expected).sum())
        residual = torch.ones_like(x)
        ops.all_reduce_norm(x, residual, residual[0].clone(), None, 1e-5, group.peers.memory)
        num_wrong.add_((residual != expected + 1).sum())
        step.add_(1)

    graphs = []
    for num_rows in (3, 64):
        work(num_rows)
        group.barrier()
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            work(num_rows)
    for i in range(1000):
        if i % 7 == group.rank:
            torch.cuda._sleep(200_000)
        graphs[i * i % 3 % 2].replay()
        if i % 100 == 99:
            group.barrier()
    assert (int(step), int(num_wrong)) == (1002, 0)
    return "equal"


def _started_sums(group, device, num_sums):
    """Two sums under way at a time beside a product, by ranks that are late in turn; how many are wrong."""
    import torch

    x0 = torch.arange(1024, device=device)[:, None] % 8 + torch.arange(4096, device=device) % 4
    weight, matrix = torch.ones(4096, dtype=torch.bfloat16, device=device), torch.randn(2048, 2048, device=device)
    num_wrong, under_way = torch.zeros((), dtype=torch.int64, device=device), []

    def take():
        turn, pending = under_way.pop(0)
        residual = torch.ones(1024, 4096, dtype=torch.bfloat16, device=device)
        out = pending.norm(residual, weight, None, 1e-5)
        expected = group.size * (x0 + turn % 16) + sum(range(group.size)) + 1
        num_wrong.add_((residual != expected).sum() + out.isnan().sum())

    for turn in range(num_sums):
        if turn % 7 == group.rank:
            torch.cuda._sleep(2_000_000)
        x = (x0 + turn % 16 + group.rank).to(torch.bfloat16)  # small integers: sums are exact
        under_way.append((turn, group.start_sum(x)))
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        if len(under_way) == 2:
            take()
    while under_way:
        take()
    group.barrier()
    return int(num_wrong)


def sums_beside_nccl(group, device):
    assert _started_sums(group, device, 200) == 0
    return "equal"


def sums_by_copies(group, device):
    group.reserve_overlap(1024, 8192)
    assert group._copied_sums is not None, "the GPUs cannot write to each other's memory"
    assert _started_sums(group, device, 200) == 0
    return "equal"


def lost_copier(group, device):
    """Rank 0's stream waits for a copy of the others, which wait for a line."""
    import torch

    group.reserve_overlap(16, 8192)
    x, residual, weight = (torch.ones(16, 4096, dtype=torch.bfloat16, device=device) for _ in "xrw")
    group.start_sum(x).norm(residual, weight[0], None, 1e-5)
    group.barrier()
    print("ready", flush=True)
    if group.rank > 0:
        sys.stdin.readline()
    group.start_sum(x).norm(residual, weight[0], None, 1e-5)
    group.barrier()
    return "met"


def lost_writer(group, device):
    """As lost_peer, with a kernel of ours that waits."""
    group.reserve(4, 16384)
    return lost_peer(group, device)


def lost_peer(group, device):
    """Rank 0 is in a collective that the others, which wait for a line, do not come to."""
    import torch

    x = torch.ones(1, 4096, device=device)
    group.all_reduce(x)
    group.barrier()
    print("ready", flush=True)
    if group.rank > 0:
        sys.stdin.readline()
    group.all_reduce(x)
    group.barrier()
    return "met"


def barrier(group, device):
    """Rank 0 waits for the others, which wait for a line first."""
    if group.rank > 0:
        sys.stdin.readline()
    group.barrier()
    assert group.exchange(f"rank {group.rank}".encode()) == [f"rank {rank}".encode() for rank in range(group.size)]
    return "met"


def main(case, rank, size, device):
    unique_id = bytes.fromhex(sys.stdin.readline())
    timeout_s = float(sys.stdin.readline())
    if case == "barrier":  # the core alone: no need for torch, which takes seconds to import
        from runtime._core import Communicator

        group = Communicator(unique_id, rank, size, timeout_s=timeout_s)
    else:
        from runtime.parallel import init_tp_group

        device = f"cuda:{rank}" if device == "cuda" else device
        overlap = {"sums_beside_nccl": "nccl", "sums_by_copies": "copy", "lost_copier": "copy"}.get(case, "none")
        options = {"deterministic": case == "rank_order", "overlap": overlap}
        group = init_tp_group(unique_id, rank, size, device, timeout_s, **options)
    print("joined", flush=True)
    print(globals()[case](group, device), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
