"""Logprobs of given tokens: which logits a step needs for them, and the values kept until the request ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from runtime.kernels import step_plan as sp

Words = npt.NDArray[np.int32]


@dataclass
class ScoredRow:
    """A request that scores its prompt: tokens from `start` on get logprobs, in chunks as they are computed."""

    known_ids: Words
    start: int
    num_top: int  # likeliest tokens of each position, beside the scored one
    # (ids int64, logprobs float32), each [positions, 1 + num_top], in order; on the host once their step is done
    chunks: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def values(self) -> list[tuple[list[int], list[float]]]:
        """Ids and logprobs of each position: the scored token, then the top ones."""
        return [pair for ids, logprobs in self.chunks for pair in zip(ids.tolist(), logprobs.tolist())]


@dataclass
class Targets:
    """What one step scores. `logits_index` is int64: the last token of each row, then every position to score."""

    logits_index: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]  # by scored position
    rows: dict[int, ScoredRow]  # by index in the plan
    counts: dict[int, int]  # scored positions of each of `rows`, in the same order


class Scorer:
    """Follows the scored rows of the plans as they are launched."""

    def __init__(self) -> None:
        self._rows: dict[int, ScoredRow] = {}

    @property
    def active(self) -> bool:
        """Whether any row is being scored."""
        return bool(self._rows)

    def apply(self, words: Words, header: list[int]) -> None:
        """Takes note of the plan's new rows; a row that is written anew starts anew."""
        offset, count = header[sp.NEW_ROWS : sp.NEW_ROWS + 2]
        for i in range(count):
            record = words[offset + i * sp.NEW_ROW_WORDS :][: sp.NEW_ROW_WORDS]
            self._rows.pop(int(record[sp.REC_ROW]), None)
            if record[sp.REC_FLAGS] & sp.SCORE:
                ids_offset, num_ids = record[sp.REC_KNOWN_IDS : sp.REC_KNOWN_IDS + 2].tolist()
                known = words[ids_offset : ids_offset + num_ids].copy()
                start, num_top = record[sp.REC_SCORE_START], max(record[sp.REC_NUM_LOGPROBS], 0)
                self._rows[int(record[sp.REC_ROW])] = ScoredRow(known, int(start), int(num_top))

    def targets(self, rows: Words) -> Targets | None:
        """What a step of these `rows` (int32 [num_rows, 4] of the plan) scores; None: nothing."""
        if not (rows[:, 3] & sp.ROW_SCORE).any():
            return None
        ends = np.cumsum(rows[:, 2], dtype=np.int64)
        index, ids = [ends - 1], []
        found = Targets(ends, ends, {}, {})
        for i in np.flatnonzero(rows[:, 3] & sp.ROW_SCORE).tolist():
            row, num_computed, num_scheduled, _ = rows[i].tolist()
            scored = self._rows[row]
            # the logits at position p are those of token p + 1
            first = max(num_computed, scored.start - 1)
            last = min(num_computed + num_scheduled, len(scored.known_ids) - 1)
            index.append(np.arange(first, last) - num_computed + ends[i] - num_scheduled)
            ids.append(scored.known_ids[first + 1 : last + 1].astype(np.int64))
            found.rows[i], found.counts[i] = scored, max(last - first, 0)
        found.logits_index, found.token_ids = np.concatenate(index), np.concatenate(ids)
        return found

    def keep(self, targets: Targets, logits: torch.Tensor) -> None:
        """Adds the logprobs of a step; `logits` is [scored positions, vocab]. Does not wait for the device."""
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        token_ids = torch.from_numpy(targets.token_ids).to(logits.device, non_blocking=True)[:, None]
        chosen = logprobs.gather(1, token_ids)
        num_top = max(scored.num_top for scored in targets.rows.values())
        if num_top:
            top = logprobs.topk(num_top, dim=-1)
            token_ids, chosen = torch.cat([token_ids, top.indices], dim=1), torch.cat([chosen, top.values], dim=1)
        ids, values = _to_host(token_ids), _to_host(chosen)
        start = 0
        for scored, count in zip(targets.rows.values(), targets.counts.values()):
            part = slice(start, start + count), slice(0, 1 + scored.num_top)
            scored.chunks.append((ids[part], values[part]))
            start += count


def _to_host(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
    return host.copy_(values, non_blocking=True)
