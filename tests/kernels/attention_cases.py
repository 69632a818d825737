"""Random paged batches for the tests of both attention ops."""

import itertools
from dataclasses import dataclass

import torch
from harness import randn


@dataclass
class PagedBatch:
    """Arguments of the attention ops; blocks in random order, every cache entry that no row owns is NaN."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    b_loc: torch.Tensor
    b_row: torch.Tensor
    b_start_loc: torch.Tensor
    b_seq_len: torch.Tensor
    max_new_tokens: int

    def token_args(self, max_len=None):
        max_len = max_len or int(self.b_seq_len.max())
        return self.q, self.k_cache, self.v_cache, self.b_loc, self.b_row, self.b_seq_len, max_len

    def context_args(self):
        tables = self.b_loc, self.b_row, self.b_start_loc, self.b_seq_len
        return self.q, self.k_cache, self.v_cache, *tables, self.max_new_tokens

    def select(self, rows, new=None):
        """The same rows in a batch of their own; `new` (first, stop) tokens of each instead of all of them."""
        starts = self.b_start_loc.tolist()
        spans = [(starts[i], starts[i + 1]) for i in rows]
        lens = self.b_seq_len[rows]
        if new is not None:
            lens = lens - torch.tensor([b - a - new[1] for a, b in spans], device=lens.device, dtype=torch.int32)
            spans = [(a + new[0], a + new[1]) for a, _ in spans]
        counts = [b - a for a, b in spans]
        start_loc = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=lens.device)
        q = torch.cat([self.q[a:b] for a, b in spans])
        return PagedBatch(
            q, self.k_cache, self.v_cache, self.b_loc, self.b_row[rows], start_loc, lens.contiguous(), max(counts)
        )


def paged_batch(
    num_new, seq_lens, *, heads=4, kv_heads=2, head_dim=16, block_size=4, dtype=torch.float32, device="cpu"
):
    """Row i has num_new[i] new tokens at the end of a context of seq_lens[i] tokens."""
    counts = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(counts)
    shape = (num_blocks + 1, kv_heads, block_size, head_dim)
    k_cache, v_cache = (randn(*shape, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    block_ids = torch.randperm(num_blocks, generator=generator).int() + 1
    b_row = torch.randperm(len(seq_lens), generator=generator).int()
    b_loc = torch.zeros(len(seq_lens) + 1, max(counts) + 1, dtype=torch.int32)
    owned = block_ids.split(counts)
    for row, ids, length in zip(b_row.tolist(), owned, seq_lens):
        b_loc[row, : len(ids)] = ids
        for cache in (k_cache, v_cache):
            cache[int(ids[-1]), :, (length - 1) % block_size + 1 :] = float("nan")
    k_cache[0], v_cache[0] = float("nan"), float("nan")
    b_start_loc = torch.tensor([0, *itertools.accumulate(num_new)], dtype=torch.int32)
    q = randn(sum(num_new), heads, head_dim, dtype=dtype, device=device)
    tables = (t.to(device) for t in (b_loc, b_row, b_start_loc, torch.tensor(seq_lens, dtype=torch.int32)))
    return PagedBatch(q, k_cache, v_cache, *tables, max(num_new))


def extras(name, heads, device):
    """Keyword arguments of one variant of the scores."""
    slopes = (0.5 ** torch.arange(1, heads + 1)).to(device)
    variants = {
        "plain": {},
        "alibi": {"alibi_slopes": slopes},
        "window": {"sliding_window": 21},
        "soft_cap": {"soft_cap": 1.5},
        "alibi_window_cap": {"alibi_slopes": slopes, "sliding_window": 9, "soft_cap": 3.0},
    }
    return variants[name]


VARIANTS = ["plain", "alibi", "window", "soft_cap", "alibi_window_cap"]

# a probability rounded to the cache's type weighs each value
ATTENTION_TOLERANCE = {
    torch.float32: dict(rtol=2e-5, atol=2e-5),
    torch.float16: dict(rtol=4e-3, atol=2e-3),
    torch.bfloat16: dict(rtol=2e-2, atol=1.6e-2),
}
