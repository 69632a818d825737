"""Runs step plans on the device: plan to row state and inputs, model, sampler, results back to the host.

Nothing here waits for the device: a `Step` is launched, and asked later whether it has finished.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from runtime.basemodel import first_part_tokens
from runtime.engine.cuda_graphs import DecodeGraphs
from runtime.engine.kv_tier import make_tier
from runtime.engine.masks import MaskTransfers
from runtime.engine.scoring import ScoredRow, Scorer
from runtime.engine.transfers import CudaTransfers, HostTransfers, Transfers, plan_buffers
from runtime.engine.warm_up import SMALL_TENSORS_BYTES, WarmUpStep, warm_up_steps
from runtime.errors import EngineDeadError
from runtime.kernels import ops
from runtime.kernels import step_plan as sp
from runtime.kernels.step_state import RowState, SampleWorkspace, StepInputs, StepOutputs
from runtime.log import get_logger

if TYPE_CHECKING:
    from runtime.basemodel import InferStateInfo, TpPartBaseModel
    from runtime.engine.request import Completion
    from runtime.parallel import TpGroup

logger = get_logger(__name__)

Words = npt.NDArray[np.int32]

_POLL_S = 20e-6
_MAX_COMPILING = 16  # threads; most of a compilation does not hold the interpreter


class Step:
    """A launched step. Its arrays stay valid until its buffers' next turn, when it has long been emitted."""

    def __init__(self, header: list[int], outputs: StepOutputs, buffer: int = 0) -> None:
        self.number = header[sp.STEP]
        self.buffer = buffer  # of its plan
        self.num_rows = header[sp.NUM_ROWS]
        self.is_decode = header[sp.NUM_DECODE_ROWS] == self.num_rows
        self.launched_at = time.perf_counter()
        self.done_at: float | None = None  # when `wait` saw its end
        self.event: torch.cuda.Event | None = None
        self.scored: dict[int, ScoredRow] = {}
        self.held: Callable[[], None] | None = None  # launches its sampler, which waits for masks
        self.masked: list[tuple[int, Completion]] = []  # (row in the plan, whose token is sampled under a mask)
        self.mask_errors: dict[int, Exception] = {}  # by row in the plan: why there was no mask
        self._outputs = outputs.views
        self._logprobs: list[tuple[list[int], list[float]]] = []  # of all rows, with as many top ones as were asked for

    @property
    def is_done(self) -> bool:
        """Whether its results are on the host; never waits."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self, timeout_s: float, tp_group: TpGroup) -> None:
        """Returns once the results are on the host. Polls, so that no thread blocks inside CUDA.

        Raises:
            CommunicatorError: a rank of the group is lost.
            EngineDeadError: `timeout_s` has passed.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_done:
            tp_group.poll()
            if time.monotonic() > deadline:
                raise EngineDeadError(f"step {self.number} did not finish within step_timeout={timeout_s} s")
            time.sleep(_POLL_S)
        self.done_at = time.perf_counter()

    @property
    def token_ids(self) -> Words:
        """int32 [num_rows], -1 where nothing was sampled."""
        token_ids: Words = self._outputs.token_ids[: self.num_rows]
        return token_ids

    def logprobs(self, row: int, num_top: int) -> tuple[list[int], list[float]]:
        """Ids and logprobs: the sampled token, then the top ones."""
        if not self._logprobs or len(self._logprobs[0][0]) <= num_top:  # once a step, for most
            ids, values = (
                array[: self.num_rows, : num_top + 1].tolist()
                for array in (self._outputs.logprob_ids, self._outputs.logprobs)
            )
            self._logprobs = list(zip(ids, values))
        ids, values = self._logprobs[row]
        return (ids, values) if len(ids) == num_top + 1 else (ids[: num_top + 1], values[: num_top + 1])

    def scores(self, row: int) -> list[tuple[list[int], list[float]]]:
        """Of each scored token of the request in that row of the plan: ids and logprobs, the token's, then the top."""
        return self.scored[row].values()


class ModelRunner:
    """One rank's device side of the engine; called by one thread alone.

    Every rank runs every plan; rank 0 samples, and its tokens are written to the rows of all.

    Args:
        num_plan_buffers, plan_capacity: how many StepPlans may exist at once, and the words of each.
        num_host_blocks: KV blocks of the CPU tier.
        enforce_eager: no CUDA graphs.
    """

    # whether the warm-up compiles many kernels at a time first; not the default until it was timed on a GPU
    compiles_ahead = False

    def __init__(
        self,
        model: TpPartBaseModel,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_plan_buffers: int,
        plan_capacity: int,
        num_host_blocks: int = 0,
        enforce_eager: bool = False,
    ) -> None:
        self.model, self._tp = model, model.tp_group
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.device = model.device
        row_bytes = model.config["hidden_size"] * model.dtype.itemsize
        self._tp.reserve_overlap(first_part_tokens(max_num_batched_tokens), row_bytes)
        self.rows = RowState.allocate(
            max_num_seqs=max_num_seqs,
            max_model_len=model.max_model_len,
            block_size=model.block_size,
            vocab_size=model.vocab_size,
            device=self.device,
        )
        self.inputs = StepInputs.allocate(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, device=self.device
        )
        # of the last step: consecutive decode steps mostly have the same shape
        self._views_of = (0, 0)
        self._views: dict[str, torch.Tensor] = {}
        self._input_ids = self.inputs.input_ids[:0]
        self._scorer = Scorer()
        self._transfers = self._make_transfers(num_plan_buffers, plan_capacity)
        self._workspace = self._make_workspace()
        # rank 0 alone samples
        self._masks = MaskTransfers(self.rows, num_plan_buffers) if self._tp.rank == 0 else None
        self._tier = make_tier(model.mem_manager.kv_cache, num_host_blocks)
        self._graphs = None if enforce_eager else self.make_graphs()

    def _make_transfers(self, num_plan_buffers: int, plan_capacity: int) -> Transfers:
        if self.is_async:
            return CudaTransfers(num_plan_buffers, plan_capacity, self.max_num_seqs, self.device)
        return HostTransfers(num_plan_buffers, plan_capacity, self.max_num_seqs)

    def _make_workspace(self) -> SampleWorkspace | None:
        """What Triton's sampler needs, where there is one."""
        if not self.is_async or self._tp.rank > 0:
            return None
        return SampleWorkspace.allocate(
            max_num_seqs=self.max_num_seqs, vocab_size=self.model.vocab_size, device=self.device
        )

    @property
    def is_async(self) -> bool:
        """`launch` returns before the step has run."""
        return self.device.type == "cuda"

    @property
    def plan_buffers(self) -> list[tuple[int, int]]:
        """(address, words) of each plan buffer, for `Scheduler.attach_plan_buffers`."""
        return plan_buffers(self._transfers)

    @property
    def plans(self) -> list[Words]:
        """The plan buffers themselves."""
        return self._transfers.words

    def make_graphs(self) -> DecodeGraphs | None:
        """The graphs of decode steps, not captured yet; None on a CPU."""
        return DecodeGraphs(self, self._transfers.device_outputs(0)) if self.is_async else None

    @torch.inference_mode()
    def warm_up(self) -> None:
        """On CUDA: compiles, loads and allocates all that serving will need but graphs; before the first step."""
        if not self.is_async:
            return
        limits = self.max_num_seqs, self.max_num_batched_tokens
        if self.compiles_ahead:
            self._compile_ahead(warm_up_steps(*limits, with_decode=True))
        for shape in warm_up_steps(*limits, with_decode=self._graphs is None):
            self.run_padding(shape)
        size = 1 << 20
        spare = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(SMALL_TENSORS_BYTES // size)]
        del spare  # the allocator keeps it

    def _compile_ahead(self, steps: list[WarmUpStep]) -> None:
        """Compiles what these steps launch, many kernels at a time; what fails here fails again where it is needed."""
        from runtime.kernels.compile_ahead import compile_ahead  # Triton, which a machine without a GPU may lack

        num_threads = min(max((os.cpu_count() or 1) // self._tp.size, 1), _MAX_COMPILING)
        self.prepare(self._transfers.upload(0, sp.HEADER_WORDS))  # torch's own operators run, on valid indices
        try:
            with compile_ahead(num_threads, rank=self._tp.rank, size=self._tp.size):
                for shape in steps:
                    self.run_padding(shape)
        except Exception:
            logger.warning("kernels are compiled one by one", exc_info=True)

    def run_padding(self, shape: WarmUpStep) -> None:
        """An eager step whose rows and tokens are all padding, sampled both ways."""
        self.prepare(self._transfers.upload(0, sp.HEADER_WORDS))  # nothing was planned yet: an empty plan
        state = self.infer_state(
            num_rows=shape.num_rows,
            num_tokens=shape.num_tokens,
            total_token_num=shape.num_rows * self.model.max_model_len,
            max_len=self.model.max_model_len,
            max_new_tokens=shape.max_new_tokens,
            is_prefill=shape.is_prefill,
        )
        logits = self.forward(self._input_ids, state)
        if self._masks is not None:
            self._masks.send(0, [self.max_num_seqs])  # the row of padding
        for greedy_only in (True, False):
            self.sample(logits, self._transfers.device_outputs(0), greedy_only=greedy_only)

    def capture(self) -> None:
        """Captures the CUDA graphs; before the first step."""
        if self._graphs is not None:
            self._graphs.capture()

    def launch(self, buffer: int) -> Step:
        """Runs the plan in that buffer; on CUDA it is only queued. To be called in inference mode.

        On rank 0 a step whose plan has STEP_MASKED is held: its sampler runs with `sample_held`.
        """
        words = self._transfers.words[buffer]
        header = words[: sp.HEADER_WORDS].tolist()
        num_rows, greedy_only = header[sp.NUM_ROWS], bool(header[sp.STEP_FLAGS] & sp.STEP_GREEDY_ONLY)
        if self._tier is not None and self._tp.rank > 0:
            self._tier.catch_up()
        self._start_copies(words, header)
        if num_rows == 0:  # copies alone
            return Step(header, self._transfers.host_outputs(buffer))
        self.prepare(self._transfers.upload(buffer, header[sp.NUM_WORDS]))
        self._scorer.apply(words, header)
        step = Step(header, self._transfers.host_outputs(buffer), buffer)
        sampler: Callable[[], None]
        if self._graphs is not None and step.is_decode:
            self._graphs.replay_model(num_rows)
            sampler = partial(self._graphs.replay_sampler, num_rows, greedy_only=greedy_only)
        else:
            logits = self._compute_logits(header, words, step)
            sampler = partial(self.sample, logits, self._transfers.device_outputs(buffer), greedy_only=greedy_only)
        if self._masks is not None and header[sp.STEP_FLAGS] & sp.STEP_MASKED:
            step.held = partial(self._finish, step, header, sampler)
        else:
            self._finish(step, header, sampler)
        return step

    def _finish(self, step: Step, header: list[int], sampler: Callable[[], None]) -> None:
        sampler()
        step.event = self._transfers.download(step.buffer, header)

    def masks(self, step: Step) -> Words:
        """Where the masks of a held step are written, int32 [R, ceil(vocab / 32)]."""
        assert self._masks is not None, "rank 0 alone holds steps"
        return self._masks.host(step.buffer)

    def rows_of(self, step: Step, indices: Sequence[int]) -> Words:
        """The rows in the device's state of those rows of the plan of a step that has not been emitted."""
        words = self._transfers.words[step.buffer]
        rows: Words = words[words[sp.ROWS] + np.asarray(indices, dtype=np.int64) * sp.ROW_WORDS]
        return rows

    def sample_held(self, step: Step, rows: Sequence[int] | Words) -> None:
        """Launches the sampler of a held step; mask i of its buffer is that of `rows[i]`."""
        assert self._masks is not None and step.held is not None
        self._masks.send(step.buffer, rows)
        step.held()
        step.held = None

    def _start_copies(self, words: Words, header: list[int]) -> None:
        offset, count = header[sp.COPIES], header[sp.COPIES + 1]
        if count:
            assert self._tier is not None, "only a scheduler with host blocks plans copies"
            copies = words[offset : offset + count * sp.COPY_WORDS].reshape(count, sp.COPY_WORDS)
            self._tier.start(header[sp.STEP], copies)

    def take_done_copies(self) -> list[int]:
        """Steps whose copies have finished since the last call."""
        return [] if self._tier is None else self._tier.take_done()

    @property
    def is_copying(self) -> bool:
        """Whether a copy between device and CPU tier is under way."""
        return self._tier is not None and self._tier.is_busy

    def wait_for_copies(self, timeout_s: float) -> None:
        """Returns once no copy is under way."""
        deadline = time.monotonic() + timeout_s
        while self.is_copying:
            self.take_done_copies()
            if time.monotonic() > deadline:
                raise EngineDeadError(f"copies of KV blocks did not finish within step_timeout={timeout_s} s")
            time.sleep(_POLL_S)

    def prepare(self, plan: torch.Tensor) -> None:
        """Applies a plan (int32, on the device) to the rows, and writes the step inputs."""
        ops.prepare_step(plan, self.rows, self.inputs)

    def forward(self, input_ids: torch.Tensor, infer_state: InferStateInfo) -> torch.Tensor:
        """Logits [rows of the step or of `logits_index`, vocab], in the model's dtype."""
        return self.model.run(input_ids, infer_state)

    def sample(self, logits: torch.Tensor, outputs: StepOutputs, *, greedy_only: bool) -> None:
        """On rank 0 the sampler; on all ranks, its tokens where the next step finds them."""
        if self._tp.rank == 0:
            ops.sample(logits, self.rows, self.inputs, outputs, greedy_only=greedy_only, workspace=self._workspace)
        if self._tp.size > 1:
            self._share_tokens(outputs.token_ids[: logits.shape[0]])

    def _share_tokens(self, token_ids: torch.Tensor) -> None:
        self._tp.broadcast(token_ids)
        if self._tp.rank > 0:
            row, last = self.inputs.b_row[: len(token_ids)].long(), self.rows.last_token
            last.scatter_(0, row, torch.where(token_ids < 0, last[row], token_ids))

    def _compute_logits(self, header: list[int], words: Words, step: Step) -> torch.Tensor:
        """Eager: one row of logits for each row of the plan."""
        offset, num_rows, num_tokens = header[sp.ROWS], header[sp.NUM_ROWS], header[sp.NUM_TOKENS]
        rows = words[offset : offset + num_rows * sp.ROW_WORDS].reshape(num_rows, sp.ROW_WORDS)
        targets = self._scorer.targets(rows) if self._scorer.active else None
        index = None if targets is None else torch.from_numpy(targets.logits_index)
        state = self.infer_state(
            num_rows=num_rows,
            num_tokens=num_tokens,
            total_token_num=int(rows[:, 1].sum()) + num_tokens,
            max_len=header[sp.MAX_LEN],
            max_new_tokens=1 if step.is_decode else int(rows[:, 2].max()),
            is_prefill=not step.is_decode,
            logits_index=None if index is None else index.to(self.device, non_blocking=True),
        )
        logits = self.forward(self._input_ids, state)
        if targets is None or self._tp.rank > 0:
            return logits[:num_rows]
        self._scorer.keep(targets, logits[num_rows:])
        step.scored = targets.rows
        return logits[:num_rows]

    def infer_state(
        self,
        *,
        num_rows: int,
        num_tokens: int,
        total_token_num: int,
        max_len: int,
        max_new_tokens: int,
        is_prefill: bool,
        logits_index: torch.Tensor | None = None,
    ) -> InferStateInfo:
        """The step as the model sees it: views of the step inputs, no copies."""
        if self._views_of != (num_rows, num_tokens):
            self._views_of, self._views = (num_rows, num_tokens), self._make_views(num_rows, num_tokens)
            self._input_ids = self.inputs.input_ids[:num_tokens]
        return self.model.make_infer_state(
            self._input_ids,
            batch_size=num_rows,
            total_token_num=total_token_num,
            max_len_in_batch=max_len,
            max_new_tokens_in_batch=max_new_tokens,
            is_prefill=is_prefill,
            logits_index=logits_index,
            **self._views,
        )

    def _make_views(self, num_rows: int, num_tokens: int) -> dict[str, torch.Tensor]:
        inputs = self.inputs
        return {
            "b_loc": self.rows.block_table,
            "b_row": inputs.b_row[:num_rows],
            "b_start_loc": inputs.b_start_loc[: num_rows + 1],
            "b_seq_len": inputs.b_seq_len[:num_rows],
            "position_ids": inputs.position_ids[:num_tokens],
            "slot_mapping": inputs.slot_mapping[:num_tokens],
        }
