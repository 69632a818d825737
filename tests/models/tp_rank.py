"""One rank of several models, run by test_tensor_parallel.py with the group's id on stdin.

    python tp_rank.py RANK SIZE DEVICE OUT FOLDER...

Writes to OUT, by model: logits of a prefill and of each greedy decode step [steps, rows, vocab], and the tokens taken.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from runtime.basemodel import load_model
from runtime.parallel import TpGroup, init_tp_group

PROMPTS = [[(7 * i * i + 3 * i + salt) % 67 for i in range(length)] for salt, length in enumerate((23, 9, 1, 14))]
NUM_DECODE_STEPS = 8


def forward(model, b_loc, rows, lengths, is_prefill):
    """Logits after the last token of each row's new tokens; `lengths` count the cached ones too."""
    counts = torch.tensor([len(row) for row in rows])
    model.mem_manager.extend(b_loc, lengths)
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32, device=model.device)
    b_start_loc, b_seq_len = counts.cumsum(0) - counts, torch.tensor(lengths)
    table = b_loc[: len(rows)]
    return model.forward(len(rows), sum(lengths), max(lengths), tokens, table, b_start_loc, b_seq_len, is_prefill).cpu()


def run(folder, group, device="cpu", dtype=torch.float32):
    """Greedy text of the prompts, as (logits, tokens)."""
    options = {"max_total_token_num": 512, "max_num_seqs": len(PROMPTS), "block_size": 4, "dtype": dtype}
    model = load_model(folder, tp_rank=group.rank, world_size=group.size, tp_group=group, device=device, **options)
    b_loc, lengths = model.new_b_loc(), [len(prompt) for prompt in PROMPTS]
    logits, tokens = [forward(model, b_loc, PROMPTS, lengths, True)], []
    for _ in range(NUM_DECODE_STEPS):
        tokens.append(logits[-1].argmax(-1))
        lengths = [length + 1 for length in lengths]
        logits.append(forward(model, b_loc, [[token] for token in tokens[-1].tolist()], lengths, False))
    return torch.stack(logits), torch.stack(tokens)


def main(rank, size, device, out, *folders):
    device = torch.device(device, rank) if device == "cuda" else torch.device(device)
    unique_id = bytes.fromhex(sys.stdin.readline())
    group = init_tp_group(unique_id, rank, size, device) if size > 1 else TpGroup()
    found = {}
    for folder in map(Path, folders):
        found[f"{folder.name}.logits"], found[f"{folder.name}.tokens"] = run(folder, group, device)
    save_file(found, out)
    group.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
