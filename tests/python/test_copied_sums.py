"""Sums by copy engines: whatever the order in which the devices come to what was queued, every sum is right."""

import random

import pytest
import torch

from runtime.kernels import ops, reference
from runtime.parallel import copied_sums
from runtime.parallel.copied_sums import NUM_SLOTS, CopiedSums

ROWS, HIDDEN, EPS = 3, 16, 1e-5


class Host:
    """Devices whose streams run nothing by themselves: `run` takes one of the streams that can go on at a time."""

    def __init__(self, size):
        self.streams = {(rank, name): [] for rank in range(size) for name in ("main", "side")}
        self.words = [[-1] * copied_sums.num_words(size) for _ in range(size)]
        self.memory = []

    def run(self, chosen):
        while any(self.streams.values()):
            ready = [queue for queue in self.streams.values() if queue and queue[0][0]()]
            assert ready, "streams wait for each other for ever"
            chosen.choice(ready).pop(0)[1]()


class Device:
    """One rank's end, as `_core.PeerCopies` and as the side stream."""

    def __init__(self, rank, host):
        self.rank, self.host = rank, host
        self.handle, self.current = (rank, "side"), (rank, "main")

    def queue(self, stream, work=lambda: None, when=lambda: True):
        self.host.streams[stream].append((when, work))

    def copy(self, rank, offset, source, num_bytes, stream):
        def work():
            memory = self.host.memory[rank].view(-1)
            memory[offset : offset + num_bytes] = self.sources[source].view(torch.uint8).view(-1)

        self.queue(stream, work)

    def write(self, rank, word, value, stream):
        self.queue(stream, lambda: self.host.words[rank].__setitem__(word, value))

    def wait(self, word, value, stream):
        words = self.host.words[self.rank]
        self.queue(stream, when=lambda: words[word] >= value)

    def _point(self, stream):
        passed = []
        self.queue(stream, lambda: passed.append(True))
        return lambda: bool(passed)

    def follow(self):
        self.queue(self.handle, when=self._point(self.current))

    def mark(self):
        passed = self._point(self.handle)
        return lambda: self.queue(self.current, when=passed)


def serve(size, num_sums, chosen, monkeypatch):
    """Each rank starts `num_sums` sums, two under way at a time as a model in parts has them; (found, expected)."""
    host, found, expected = Host(size), {}, []
    part_bytes = copied_sums.part_bytes(ROWS, HIDDEN * 4)
    host.memory = [torch.zeros(NUM_SLOTS, size, part_bytes, dtype=torch.uint8) for _ in range(size)]
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(num_sums, size, ROWS, HIDDEN, generator=generator)
    residual, weight = torch.randn(ROWS, HIDDEN, generator=generator), torch.randn(HIDDEN, generator=generator)
    for parts in xs:
        expected.append(reference.sum_norm(parts[0], parts, 0, residual.clone(), weight, None, EPS))

    def end(device, pending, turn):
        """The norm runs when its stream comes to it, and x is then the next one's to overwrite."""

        def sum_norm(x, parts, rank, *norm, out):
            def work():
                found[rank, turn] = reference.sum_norm(x, parts, rank, *norm)
                out.fill_(float("nan"))

            device.queue(device.current, work)
            return out

        monkeypatch.setattr(ops, "sum_norm", sum_norm)
        pending.norm(residual.clone(), weight, None, EPS)

    for rank in range(size):
        device = Device(rank, host)
        sums, under_way = CopiedSums(device, rank, size, host.memory[rank], device), []
        own = [parts[rank].clone() for parts in xs]
        device.sources = {x.data_ptr(): x for x in own}
        for turn, x in enumerate(own):
            assert sums.fits(x)
            under_way.append((sums.start(x), turn))
            if len(under_way) == NUM_SLOTS:
                end(device, *under_way.pop(0))
        for pending, turn in under_way:
            end(device, pending, turn)
    host.run(chosen)
    return found, expected


@pytest.mark.parametrize("size", [2, 4])
def test_every_order_gives_every_sum(size, monkeypatch):
    for seed in range(20):
        found, expected = serve(size, 7, random.Random(seed), monkeypatch)
        for (_, turn), value in found.items():
            assert torch.equal(value, expected[turn])
        assert len(found) == 7 * size


def test_what_does_not_fit_goes_another_way():
    device = Device(0, Host(2))
    sums = CopiedSums(device, 0, 2, torch.zeros(NUM_SLOTS, 2, 256, dtype=torch.uint8), device)
    assert sums.fits(torch.zeros(2, 32))
    assert not sums.fits(torch.zeros(2, 33)) and not sums.fits(torch.zeros(64))
    assert not sums.fits(torch.zeros(4, 32)[:, ::2])
