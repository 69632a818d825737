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


def lost_peer(group, device):
    """Rank 0 is in a collective that the others, which wait for a line, do not come to."""
    import torch

    x = torch.ones(4096, device=device)
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
        group = init_tp_group(unique_id, rank, size, device, timeout_s, deterministic=case == "rank_order")
    print("joined", flush=True)
    print(globals()[case](group, device), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
