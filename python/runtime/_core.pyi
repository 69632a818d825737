"""
C++ core of the runtime: scheduler, KV cache bookkeeping, ranks and collectives.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.dtypes
import numpy.typing
import typing_extensions

__all__: list[str] = [
    "BlockAllocator",
    "Communicator",
    "DataType",
    "DeviceLimits",
    "FleetConfig",
    "Launcher",
    "Lengths",
    "Mailbox",
    "MailboxMetrics",
    "ModelShape",
    "PeerBuffers",
    "PeerCopies",
    "RankFailure",
    "RankLink",
    "RankState",
    "ReplayDifference",
    "ReplayReport",
    "ReplicaConfig",
    "RequestParams",
    "Roofline",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerSnapshot",
    "SchedulerStats",
    "SharedPrefixes",
    "SimulationResult",
    "StepFeatures",
    "StepResult",
    "StepTimeModel",
    "Workload",
    "find_workload",
    "known_devices",
    "load_nccl",
    "replay",
    "simulate",
    "simulate_fleet",
    "simulated_request",
    "step_features",
    "step_plan",
    "workload_names",
]

class DataType:
    """
    Of the elements of a collective.

    Members:

      FLOAT32

      BFLOAT16

      FLOAT16

      INT32
    """

    BFLOAT16: typing.ClassVar[DataType]
    FLOAT16: typing.ClassVar[DataType]
    FLOAT32: typing.ClassVar[DataType]
    INT32: typing.ClassVar[DataType]
    __members__: typing.ClassVar[dict[str, DataType]]
    @typing.overload
    def __eq__(self, other: DataType) -> bool: ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    @typing.overload
    def __ne__(self, other: DataType) -> bool: ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Communicator:
    """
    One rank's end of a group of processes of one host. All ranks make the same calls in the same order, on addresses of contiguous memory: a CPU's with an id for 'shm', a GPU's with one for 'nccl', whose calls are queued on `stream`. Raises CommunicatorError, once a rank has failed at every call.
    """
    @staticmethod
    def unique_id(backend: str) -> bytes:
        """
        Names a group to be, made on rank 0 for 'shm' or 'nccl': a secret of at most 256 bytes.
        """
    def __init__(
        self,
        unique_id: bytes,
        rank: typing.SupportsInt | typing.SupportsIndex,
        size: typing.SupportsInt | typing.SupportsIndex,
        *,
        timeout_s: typing.SupportsFloat | typing.SupportsIndex = 60.0,
        piece_bytes: typing.SupportsInt | typing.SupportsIndex = 1048576,
    ) -> None:
        """
        Returns when all ranks have joined; with 'nccl' for the current CUDA device. timeout_s: how long a rank waits for the others. piece_bytes: of shared memory, longer messages go in pieces.
        """
    def abort(self, cause: str) -> None:
        """
        From any thread: ends the group; calls under way raise the cause.
        """
    def all_gather(
        self,
        input: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: DataType,
        stream: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        out[size * count] = the ranks' input[count], one after the other.
        """
    def all_reduce(
        self,
        input: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: DataType,
        stream: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        out[count] = sum of the ranks' input[count]; in place works.
        """
    def barrier(self) -> None:
        """
        Returns when all ranks have come to it; knows nothing of streams.
        """
    def broadcast(
        self,
        data: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: DataType,
        root: typing.SupportsInt | typing.SupportsIndex = 0,
        stream: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        data[count] = that of `root`.
        """
    def exchange(self, data: bytes) -> list[bytes]:
        """
        The ranks' bytes, of one length, in rank order; on the host with either backend.
        """
    def poll(self) -> None:
        """
        Raises what has failed since, a rank that died included, without waiting.
        """
    def reduce_scatter(
        self,
        input: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        dtype: DataType,
        stream: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        out[count] = part `rank` of the sum of the ranks' input[size * count].
        """
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

class MailboxMetrics:
    """
    Of a request that has ended, for Mailbox.push.
    """
    def __init__(
        self,
        *,
        queue_s: typing.SupportsFloat | typing.SupportsIndex,
        ttft_s: typing.SupportsFloat | typing.SupportsIndex,
        e2e_s: typing.SupportsFloat | typing.SupportsIndex,
        prompt_tokens: typing.SupportsInt | typing.SupportsIndex,
        cached_tokens: typing.SupportsInt | typing.SupportsIndex,
        output_tokens: typing.SupportsInt | typing.SupportsIndex,
        preemptions: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class Mailbox:
    """
    Requests of a C++ program on their way to its engine, and chunks on their way back. Thread-safe.
    """
    def close(self) -> None:
        """
        Ends all requests and all waits.
        """
    def end(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The request has ended; no chunk follows.
        """
    def fail(self, id: typing.SupportsInt | typing.SupportsIndex, error: typing.Any) -> None:
        """
        It has ended with an exception, which its caller gets.
        """
    def push(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        index: typing.SupportsInt | typing.SupportsIndex,
        text: str,
        token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        logprobs: collections.abc.Sequence[
            tuple[
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
                collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
            ]
        ],
        finish: typing.SupportsInt | typing.SupportsIndex,
        stop_string: str | None,
        stop_token_id: typing.SupportsInt | typing.SupportsIndex,
        metrics: MailboxMetrics | None,
    ) -> None:
        """
        News of completion `index`. logprobs: (ids, values) of each token; finish: as in StepResult; metrics: with the request's last chunk, else None.
        """
    def take(self) -> list[tuple[int, int, dict[str, typing.Any]]]:
        """
        The items: (kind, id, fields), kind 0 submit, 1 score, 2 abort, 3 more; fields are keyword arguments of SamplingParams and SubmitOptions, and prompt or continuation.
        """
    def wait(self, timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        Blocks, without the GIL, until there are items; False once the mailbox is closed.
        """
    def wants_news(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether what was pushed has been read. Otherwise news may be held back until an item asks for more; not those of a request that has ended.
        """

class BlockAllocator:
    """
    Hands out KV cache blocks, ids 1..num_blocks, to the Scheduler that is built on it. Holds no tensors.
    """
    def __init__(self, num_blocks: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_free(self) -> int:
        """
        Blocks that nobody owns, cached ones included.
        """

class RankFailure:
    """
    Why a group of ranks cannot go on; `what` is the whole sentence.
    """
    def __init__(
        self,
        rank: typing.SupportsInt | typing.SupportsIndex,
        what: str,
        type: str = "",
        cause: str = "",
        hint: str = "",
        phase: str = "",
    ) -> None: ...
    @property
    def cause(self) -> str: ...
    @property
    def hint(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def type(self) -> str:
        """
        Type of the rank's exception, "": none.
        """
    @property
    def what(self) -> str: ...

class RankState:
    """
    One rank as rank 0 sees it.
    """
    @property
    def begun_step(self) -> int:
        """
        -1: none.
        """
    @property
    def done_step(self) -> int:
        """
        -1: none.
        """
    @property
    def num_calls(self) -> int:
        """
        Of collectives, as it has shown.
        """
    @property
    def phase(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def silent_s(self) -> float:
        """
        Seconds since the process last ran.
        """

class Launcher:
    """
    Starts the processes of ranks 1.. on this host, watches them and gives them step plans. Any thread may call it; one thread publishes.
    """
    def __init__(
        self,
        argv: collections.abc.Sequence[str],
        num_ranks: typing.SupportsInt | typing.SupportsIndex,
        *,
        environment: collections.abc.Mapping[str, str] = {},
        start_silence_s: typing.SupportsFloat | typing.SupportsIndex = 60.0,
    ) -> None:
        """
        Raises ConfigError, CapacityError.
        """
    def exchange(self, data: bytes) -> list[bytes]:
        """
        Every rank's bytes, in rank order, once all have given theirs. Raises EngineDeadError.
        """
    def fail(self, failure: RankFailure) -> None:
        """
        Rank 0's own finding; counts if it is the first. All ranks are killed.
        """
    def publish(
        self, address: typing.SupportsInt | typing.SupportsIndex, timeout_s: typing.SupportsFloat | typing.SupportsIndex
    ) -> None:
        """
        Gives the StepPlan at that address to every rank. Raises EngineDeadError.
        """
    def send(self, rank: typing.SupportsInt | typing.SupportsIndex, data: bytes) -> None:
        """
        Bytes for one rank's RankLink.receive. Raises EngineDeadError.
        """
    def stop(self, grace_s: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Lets the ranks end, kills those that have not after grace_s. Idempotent.
        """
    def wait_for_failure(self, timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> RankFailure | None:
        """
        The failure; None after timeout_s or once the group is being stopped.
        """
    @property
    def failure(self) -> RankFailure | None:
        """
        The first failure, or None.
        """
    @property
    def ranks(self) -> list[RankState]:
        """
        States of ranks 1..
        """

class RankLink:
    """
    The other end of a Launcher, in the process of a rank. Ends the process when rank 0 is gone.
    """
    def __init__(self) -> None: ...
    def exchange(self, data: bytes) -> list[bytes]: ...
    def fail(self, type: str, cause: str, hint: str, is_echo: bool) -> None:
        """
        This rank cannot go on; is_echo: because of another one.
        """
    def finish_step(self, step: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The step has been run.
        """
    def read_plan(self, buffer: typing_extensions.Buffer) -> int | None:
        """
        Writes the next StepPlan into an aligned, contiguous buffer and returns its step; None: the group ends. Raises EngineDeadError.
        """
    def receive(self) -> bytes:
        """
        The next bytes that rank 0 sent.
        """
    def set_phase(self, phase: str) -> None:
        """
        What this rank does now; "": it runs steps.
        """
    def show_calls(self, num_calls: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        How many collectives this rank has called so far.
        """
    @property
    def num_ranks(self) -> int: ...
    @property
    def rank(self) -> int: ...

class PeerBuffers:
    """
    num_bytes of device memory on every rank, all 0xff, that all ranks can read and write; of the current CUDA device. A collective call on the host. Raises ConfigError, on every rank the same, where a rank has no such memory or cannot reach another's.
    """
    def __init__(self, communicator: Communicator, num_bytes: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def abort_word(self) -> int:
        """
        Address of an int32 that is 0 until the group has failed.
        """
    @property
    def addresses(self) -> list[int]:
        """
        Of each rank's memory, as this device knows it.
        """

class PeerCopies:
    """
    num_bytes of device memory on every rank that the others copy into by copy engine, and num_words int32, -1 at first, by which streams of two devices wait for each other; a stream that waits goes on when the group fails. Made as PeerBuffers are. Methods queue work on `stream`, a handle.
    """
    def __init__(
        self,
        communicator: Communicator,
        num_words: typing.SupportsInt | typing.SupportsIndex,
        num_bytes: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def copy(
        self,
        rank: typing.SupportsInt | typing.SupportsIndex,
        offset: typing.SupportsInt | typing.SupportsIndex,
        source: typing.SupportsInt | typing.SupportsIndex,
        num_bytes: typing.SupportsInt | typing.SupportsIndex,
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        num_bytes at the address `source` of this device, to `offset` of the bytes of `rank`.
        """
    def wait(
        self,
        word: typing.SupportsInt | typing.SupportsIndex,
        value: typing.SupportsInt | typing.SupportsIndex,
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        Until this rank's word has reached `value`.
        """
    def write(
        self,
        rank: typing.SupportsInt | typing.SupportsIndex,
        word: typing.SupportsInt | typing.SupportsIndex,
        value: typing.SupportsInt | typing.SupportsIndex,
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        The word of `rank`, once what the stream did before can be seen there.
        """
    @property
    def address(self) -> int:
        """
        Of this rank's bytes.
        """

class RequestParams:
    """
    Validated numbers of one request. Raises InvalidRequestError with the field, its value, the limit and the nearest value that works.
    """
    def __init__(
        self,
        *,
        n: typing.Any = 1,
        temperature: typing.Any = 1.0,
        top_p: typing.Any = 1.0,
        top_k: typing.Any = 0,
        min_p: typing.Any = 0.0,
        presence_penalty: typing.Any = 0.0,
        frequency_penalty: typing.Any = 0.0,
        repetition_penalty: typing.Any = 1.0,
        seed: typing.Any = None,
        stop_token_ids: typing.Any = None,
        ignore_eos: typing.Any = False,
        max_tokens: typing.Any = None,
        min_tokens: typing.Any = 0,
        logprobs: typing.Any = None,
        logit_bias: typing.Any = None,
        allowed_token_ids: typing.Any = None,
        prompt_logprobs: typing.Any = None,
        banned_token_ids: typing.Any = None,
    ) -> None: ...
    @property
    def is_greedy(self) -> bool: ...
    @property
    def n(self) -> int: ...
    @property
    def num_logprobs(self) -> int:
        """
        -1: off.
        """
    @property
    def num_prompt_logprobs(self) -> int:
        """
        -1: off.
        """

class StepFeatures:
    """
    What a step does, as far as its time depends on it.
    """

    TILE_LEN: typing.ClassVar[int] = 128
    def __init__(
        self,
        num_rows: typing.SupportsInt | typing.SupportsIndex,
        num_decode_rows: typing.SupportsInt | typing.SupportsIndex,
        num_tokens: typing.SupportsInt | typing.SupportsIndex,
        num_decode_tiles: typing.SupportsFloat | typing.SupportsIndex,
        num_prefill_tiles: typing.SupportsFloat | typing.SupportsIndex,
        num_repeated_tiles: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    @property
    def num_decode_rows(self) -> int: ...
    @property
    def num_decode_tiles(self) -> float:
        """
        tiles of TILE_LEN tokens of context by one query
        """
    @property
    def num_prefill_tiles(self) -> float:
        """
        tiles of TILE_LEN tokens of context by TILE_LEN queries
        """
    @property
    def num_repeated_tiles(self) -> float:
        """
        of num_decode_tiles, those that another row reads as well
        """
    @property
    def num_rows(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...

class StepTimeModel:
    """
    Seconds of a step: t0(bucket) + gemm(bucket) + attention(sum of tiles) + collectives(bucket) + host. Raises ConfigError.
    """
    def __init__(
        self,
        *,
        buckets: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsFloat | typing.SupportsIndex,
                typing.SupportsFloat | typing.SupportsIndex,
                typing.SupportsFloat | typing.SupportsIndex,
            ]
        ],
        max_graph_rows: typing.SupportsInt | typing.SupportsIndex = 0,
        decode_tile_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        repeated_tile_share: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        prefill_tile_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        host_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        row_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    def seconds(self, features: StepFeatures) -> float: ...
    @property
    def buckets(self) -> list[tuple[int, float, float, float]]:
        """
        (num_tokens, launch_s, gemm_s, collective_s)
        """
    @property
    def decode_tile_s(self) -> float: ...
    @property
    def host_s(self) -> float: ...
    @property
    def max_graph_rows(self) -> int: ...
    @property
    def prefill_tile_s(self) -> float: ...
    @property
    def recompute_context_s(self) -> float:
        """
        of SchedulerConfig, on this device
        """
    @property
    def recompute_token_s(self) -> float:
        """
        of SchedulerConfig, on this device
        """

class DeviceLimits:
    """
    What one accelerator gives; the defaults are those of an H200 SXM. Rates are a second's, sizes bytes, utilization is the share of the memory for weights and KV cache, reserve bytes of it that neither gets; launch_s and host_s are of every step. Raises ConfigError.
    """
    def __init__(
        self,
        *,
        bandwidth: typing.SupportsFloat | typing.SupportsIndex = 4300000000000.0,
        flops: typing.SupportsFloat | typing.SupportsIndex = 788000000000000.0,
        link: typing.SupportsFloat | typing.SupportsIndex = 450000000000.0,
        bus_bandwidth: typing.SupportsFloat | typing.SupportsIndex = 340000000000.0,
        one_shot_s: typing.SupportsFloat | typing.SupportsIndex = 2.8e-06,
        two_shot_s: typing.SupportsFloat | typing.SupportsIndex = 5e-06,
        ring_s: typing.SupportsFloat | typing.SupportsIndex = 1e-05,
        memory: typing.SupportsFloat | typing.SupportsIndex = 150754820096.0,
        utilization: typing.SupportsFloat | typing.SupportsIndex = 0.9,
        reserve: typing.SupportsFloat | typing.SupportsIndex = 2500000000.0,
        launch_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        host_s: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    def all_reduce_s(
        self, num_bytes: typing.SupportsFloat | typing.SupportsIndex, tp: typing.SupportsInt | typing.SupportsIndex
    ) -> float:
        """
        Seconds to sum so many bytes over `tp` devices, the fastest way.
        """
    @property
    def bandwidth(self) -> float: ...
    @property
    def bus_bandwidth(self) -> float: ...
    @property
    def flops(self) -> float: ...
    @property
    def host_s(self) -> float: ...
    @property
    def launch_s(self) -> float: ...
    @property
    def link(self) -> float: ...
    @property
    def memory(self) -> float: ...
    @property
    def one_shot_s(self) -> float: ...
    @property
    def reserve(self) -> float: ...
    @property
    def ring_s(self) -> float: ...
    @property
    def two_shot_s(self) -> float: ...
    @property
    def utilization(self) -> float: ...

class ModelShape:
    """
    Sizes of a decoder-only transformer, in parameters where not said otherwise.
    """
    @staticmethod
    def from_config(json: str) -> ModelShape:
        """
        From the text of a config.json. Raises ModelFormatError.
        """
    @property
    def active(self) -> float:
        """
        that one token is multiplied with, the head left out
        """
    @property
    def dense(self) -> float:
        """
        of all layers, read in every step
        """
    @property
    def embedding(self) -> float:
        """
        besides the head; 0: tied
        """
    @property
    def expert(self) -> float:
        """
        one of them
        """
    @property
    def experts(self) -> int:
        """
        of such a layer
        """
    @property
    def experts_per_token(self) -> int: ...
    @property
    def head(self) -> float: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def moe_layers(self) -> int: ...
    @property
    def total(self) -> float: ...

class Roofline:
    """
    Step times that a device cannot beat: each matrix product and attention takes the longer of reading and computing. Raises ConfigError.
    """
    def __init__(
        self,
        shape: ModelShape,
        device: DeviceLimits,
        *,
        tp: typing.SupportsInt | typing.SupportsIndex = 1,
        weight_bytes: typing.SupportsFloat | typing.SupportsIndex = 2.0,
        kv_bytes: typing.SupportsFloat | typing.SupportsIndex = 2.0,
    ) -> None: ...
    def decode_s(
        self, batch: typing.SupportsFloat | typing.SupportsIndex, context: typing.SupportsFloat | typing.SupportsIndex
    ) -> float:
        """
        A step of so many requests with `context` tokens in the mean.
        """
    def offline_s(
        self,
        requests: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ],
    ) -> float:
        """
        (prompt_len, output_len) of requests that all run at once.
        """
    def prefill_s(self, prompt_lens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> float:
        """
        Prompts computed together.
        """
    def step_times(self, max_num_seqs: typing.SupportsInt | typing.SupportsIndex) -> StepTimeModel:
        """
        The language model's head sees so many tokens of a step at most.
        """
    @property
    def kv_bytes_per_token(self) -> float:
        """
        on one rank
        """
    @property
    def kv_tokens(self) -> int:
        """
        that fit beside the weights; negative: the weights do not fit
        """

class SchedulerConfig:
    """
    Limits of the scheduler. Raises ConfigError. preempt_every and constant_block_hash are for tests, admission='oracle' is for simulations.
    """
    def __init__(
        self,
        max_num_seqs: typing.SupportsInt | typing.SupportsIndex,
        max_num_batched_tokens: typing.SupportsInt | typing.SupportsIndex,
        block_size: typing.SupportsInt | typing.SupportsIndex,
        max_model_len: typing.SupportsInt | typing.SupportsIndex,
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        *,
        eos_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        enable_prefix_caching: bool = True,
        num_steps_in_flight: typing.SupportsInt | typing.SupportsIndex = 1,
        watermark: typing.SupportsFloat | typing.SupportsIndex = 0.01,
        preempt_every: typing.SupportsInt | typing.SupportsIndex = 0,
        max_queued_requests: typing.SupportsInt | typing.SupportsIndex = -1,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        constant_block_hash: bool = False,
        policy: str = "fcfs",
        priority_ageing_s: typing.SupportsFloat | typing.SupportsIndex = 10.0,
        tenant_weights: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex] = {},
        prompt_token_weight: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        output_token_weight: typing.SupportsFloat | typing.SupportsIndex = 2.0,
        admission: str = "past_future",
        admission_reserve: typing.SupportsFloat | typing.SupportsIndex = 0.03,
        length_window: typing.SupportsInt | typing.SupportsIndex = 1024,
        target_itl_ms: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        step_time: StepTimeModel | None = None,
        eviction: str = "lru",
        max_pinned_share: typing.SupportsFloat | typing.SupportsIndex = 0.5,
        num_host_blocks: typing.SupportsInt | typing.SupportsIndex = 0,
        recompute_token_s: typing.SupportsFloat | typing.SupportsIndex = 4e-05,
        recompute_context_s: typing.SupportsFloat | typing.SupportsIndex = 1e-09,
        transfer_block_s: typing.SupportsFloat | typing.SupportsIndex = 5e-05,
    ) -> None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @property
    def max_num_blocks_per_seq(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def num_steps_in_flight(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

class StepResult:
    """
    What a step brought, as parallel read-only numpy arrays: one entry for each sampled token, each scored row and each request that ended without one.
    """
    @property
    def finish(self) -> numpy.typing.NDArray[numpy.int8]:
        """
        int8 [n]; 0 running, 1 stop, 2 length, 3 abort, 4 error
        """
    @property
    def num_cached(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; tokens found in the prefix cache, on the last entry
        """
    @property
    def num_preemptions(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; on the last entry
        """
    @property
    def request_ids(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [n]
        """
    @property
    def rows(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; row index in the step's plan, -1: none
        """
    @property
    def started(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [m]; requests that this step's plan took from the queue
        """
    @property
    def stop_ids(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; the stop token that ended it, -1: eos, or none did
        """
    @property
    def token_ids(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; -1: none
        """

class SchedulerStats:
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_cached_blocks(self) -> int: ...
    @property
    def num_cached_host_blocks(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_evictions(self) -> int: ...
    @property
    def num_finished(self) -> int: ...
    @property
    def num_free_blocks(self) -> int: ...
    @property
    def num_host_blocks(self) -> int: ...
    @property
    def num_host_evictions(self) -> int: ...
    @property
    def num_loaded_blocks(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def num_pinned_blocks(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_prefix_hits(self) -> int: ...
    @property
    def num_prefix_queries(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_recomputed_tokens(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_steps_in_flight(self) -> int: ...
    @property
    def num_stored_blocks(self) -> int: ...
    @property
    def num_swaps(self) -> int: ...
    @property
    def num_tenants(self) -> int: ...
    @property
    def num_transfers(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...

class SchedulerSnapshot:
    """
    Who runs, who waits, and whose the KV blocks are, as parallel read-only numpy arrays: those that run first, in their order, then those that wait in theirs.
    """
    @property
    def blocks(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [sum of table_lens]; of all tables, one after the other
        """
    @property
    def is_cached(self) -> numpy.typing.NDArray[numpy.int8]:
        """
        int8 [num_blocks + 1]; findable in the prefix cache
        """
    @property
    def num_computed(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; tokens whose KV entries exist or are being computed
        """
    @property
    def num_owners(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [num_blocks + 1], by block id
        """
    @property
    def output_lens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]
        """
    @property
    def phases(self) -> numpy.typing.NDArray[numpy.int8]:
        """
        int8 [n]; 0 waiting, 1 running, 2 preempted
        """
    @property
    def prompt_lens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]
        """
    @property
    def request_ids(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [n]
        """
    @property
    def table_lens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [n]; blocks of each request
        """

class Scheduler:
    """
    Plans steps and keeps the KV blocks. submit, abort, stop, reset_prefix_cache and wake may be called from any thread, the rest from one at a time.
    """
    def __init__(self, config: SchedulerConfig, allocator: BlockAllocator) -> None: ...
    def abort(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        True if this call ends the request.
        """
    def attach_plan_buffers(
        self,
        buffers: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ],
    ) -> None:
        """
        num_steps_in_flight + 1 pairs (address, num_words), written in turn. The memory must outlive the scheduler.
        """
    def check(self) -> None:
        """
        Raises RuntimeError that names the first broken invariant.
        """
    def masked_rows(self) -> list[tuple[int, int]]:
        """
        Of the newest plan: (index in the plan, request id) of each row that is sampled under a mask.
        """
    def pin(self, prompt_ids: typing.Any, *, cache_salt: str = "") -> tuple[int, int]:
        """
        Keeps the cached blocks of the longest prefix: (pin id, tokens), (-1, 0) if nothing is cached. Raises CapacityError.
        """
    def record(self, path: str) -> None:
        """
        Writes an event log from now on, for replay(). Before the first request. Raises ConfigError when the file cannot be written.
        """
    def reset_prefix_cache(self) -> None:
        """
        Forgets cached prefixes before the next step.
        """
    def schedule(self) -> int:
        """
        Tells the time, then plans the next step; the index of the buffer written, or -1: nothing can run now.
        """
    def snapshot(self) -> SchedulerSnapshot:
        """
        For people to look at; takes time for every block.
        """
    def stats(self) -> SchedulerStats:
        """
        Counts as of the last step.
        """
    def stop(
        self, request_id: typing.SupportsInt | typing.SupportsIndex, num_kept: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """
        A stop string ended the request after num_kept output tokens.
        """
    def stop_recording(self) -> None:
        """
        Ends the event log, if there is one.
        """
    def submit(
        self,
        request_id: typing.SupportsInt | typing.SupportsIndex,
        prompt_ids: typing.Any,
        params: RequestParams,
        *,
        cache_salt: str = "",
        score_start: typing.SupportsInt | typing.SupportsIndex = -1,
        priority: typing.SupportsInt | typing.SupportsIndex = 0,
        tenant: str = "",
        is_masked: bool = False,
    ) -> None:
        """
        Queues a request. prompt_ids: a list, or fastest an int32 array. is_masked: before each of its samples the ids that it may take are written to its row. Raises InvalidRequestError, CapacityError.
        """
    def take_events(self) -> StepResult:
        """
        What no step in flight will bring: requests that ended while they waited.
        """
    def transfer_done(self, step: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The copies in the plan of that step are done; any time after it, in any order.
        """
    def unpin(self, pin_id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether it was still pinned.
        """
    def update(
        self, step: typing.SupportsInt | typing.SupportsIndex, token_ids: numpy.typing.NDArray[numpy.int32]
    ) -> StepResult:
        """
        Retires the oldest step in flight. token_ids: int32, one for each row of its plan.
        """
    def validate(self, prompt_ids: typing.Any, params: RequestParams) -> None:
        """
        Raises the InvalidRequestError that submit would; queues nothing. From any thread.
        """
    def wait(self, timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        Blocks, without the GIL, until there is something to do, wake() or the timeout; whether there is.
        """
    def wake(self) -> None:
        """
        Ends a wait().
        """
    @property
    def plan_capacity(self) -> int:
        """
        int32 words that one plan buffer needs.
        """

class Lengths:
    """
    A distribution of lengths in tokens.
    """
    def __init__(
        self,
        kind: str,
        a: typing.SupportsFloat | typing.SupportsIndex,
        b: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None:
        """
        fixed(length), uniform(least, largest), lognormal(mu, sigma), exponential(mean)
        """
    @property
    def mean(self) -> float: ...

class SharedPrefixes:
    """
    A forest of prefixes that prompts share.
    """
    def __init__(
        self,
        num_trees: typing.SupportsInt | typing.SupportsIndex = 0,
        *,
        branching: typing.SupportsInt | typing.SupportsIndex = 1,
        depth: typing.SupportsInt | typing.SupportsIndex = 1,
        segment_len: typing.SupportsInt | typing.SupportsIndex = 0,
        prompt_share: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        request_share: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    ) -> None: ...

class Workload:
    """
    Requests made up from distributions; a function of its seed. Raises ConfigError.
    """
    def __init__(
        self,
        prompt: Lengths,
        output: Lengths,
        *,
        num_requests: typing.SupportsInt | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
        rate: typing.SupportsFloat | typing.SupportsIndex,
        cv: typing.SupportsFloat | typing.SupportsIndex,
        concurrency: typing.SupportsInt | typing.SupportsIndex,
        queue_depth: typing.SupportsInt | typing.SupportsIndex,
        max_tokens: typing.SupportsInt | typing.SupportsIndex,
        prefixes: SharedPrefixes,
    ) -> None: ...
    @property
    def num_requests(self) -> int: ...

class SimulationResult:
    """
    What a simulation saw.
    """
    def summary(
        self,
        *,
        ttft_s: typing.SupportsFloat | typing.SupportsIndex = ...,
        tpot_s: typing.SupportsFloat | typing.SupportsIndex = ...,
        e2e_s: typing.SupportsFloat | typing.SupportsIndex = ...,
        gap_s: typing.SupportsFloat | typing.SupportsIndex = ...,
    ) -> dict[str, typing.Any]:
        """
        Percentiles and rates; goodput counts requests that meet every limit.
        """
    @property
    def busy_share(self) -> float: ...
    @property
    def cached_share(self) -> float: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def held_share(self) -> float:
        """
        of the blocks, by requests, mean over time
        """
    @property
    def held_share_queued(self) -> float:
        """
        the same while requests waited
        """
    @property
    def num_scheduled_tokens(self) -> int: ...
    @property
    def num_wasted_tokens(self) -> int: ...
    @property
    def requests(self) -> numpy.ndarray:
        """
        structured array, one record for each request by arrival
        """
    @property
    def step_seconds(self) -> float: ...
    @property
    def timeline(self) -> numpy.ndarray:
        """
        structured array, at most 4096 points
        """
    @property
    def totals(self) -> SchedulerStats:
        """
        sums over replicas
        """

class ReplayDifference:
    """
    A step that was decided in another way.
    """
    @property
    def expected(self) -> int | None:
        """
        hash of the recorded decision; None: no step
        """
    @property
    def found(self) -> int | None:
        """
        hash of the replayed one; None: no step
        """
    @property
    def step(self) -> int: ...

class ReplayReport:
    """
    What the replay of an event log showed.
    """
    @property
    def damage(self) -> str:
        """
        why it could not be read on; empty: it was whole
        """
    @property
    def difference(self) -> ReplayDifference | None:
        """
        the first one, or None
        """
    @property
    def num_requests(self) -> int: ...
    @property
    def num_steps(self) -> int:
        """
        decided as recorded
        """
    @property
    def runtime_version(self) -> str:
        """
        that recorded it
        """
    @property
    def seconds(self) -> float:
        """
        that the scheduler's clock passed
        """

class ReplicaConfig:
    """
    A scheduler, its pool and its step times.
    """
    def __init__(
        self,
        scheduler: SchedulerConfig,
        num_blocks: typing.SupportsInt | typing.SupportsIndex,
        step_time: StepTimeModel,
        *,
        event_log: str = "",
    ) -> None: ...
    @property
    def max_len(self) -> int:
        """
        tokens that a prompt and its output may have together
        """

class FleetConfig:
    """
    Replicas behind a router.
    """
    def __init__(
        self,
        replica: ReplicaConfig,
        *,
        num_replicas: typing.SupportsInt | typing.SupportsIndex,
        router: str,
        report_interval_s: typing.SupportsFloat | typing.SupportsIndex,
        num_threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class step_plan:
    """
    Layout of a StepPlan, in int32 words.
    """

    COPY_FROM_HOST: typing.ClassVar[int] = 2
    COPY_TO_HOST: typing.ClassVar[int] = 1
    COPY_WORDS: typing.ClassVar[int] = 3
    HEADER_COPIES: typing.ClassVar[int] = 16
    HEADER_FLAGS: typing.ClassVar[int] = 21
    HEADER_FREED_ROWS: typing.ClassVar[int] = 18
    HEADER_HASH_HIGH: typing.ClassVar[int] = 3
    HEADER_HASH_LOW: typing.ClassVar[int] = 2
    HEADER_MAX_LEN: typing.ClassVar[int] = 7
    HEADER_NEW_BLOCKS: typing.ClassVar[int] = 12
    HEADER_NEW_ROWS: typing.ClassVar[int] = 14
    HEADER_NUM_DECODE_ROWS: typing.ClassVar[int] = 5
    HEADER_NUM_ROWS: typing.ClassVar[int] = 4
    HEADER_NUM_TOKENS: typing.ClassVar[int] = 6
    HEADER_NUM_WORDS: typing.ClassVar[int] = 20
    HEADER_REPEATED_TOKENS: typing.ClassVar[int] = 22
    HEADER_ROWS: typing.ClassVar[int] = 8
    HEADER_STEP: typing.ClassVar[int] = 1
    HEADER_TOKENS: typing.ClassVar[int] = 10
    HEADER_VERSION: typing.ClassVar[int] = 0
    HEADER_WORDS: typing.ClassVar[int] = 24
    MAX_MASKED_IDS: typing.ClassVar[int] = 64
    NEW_BLOCK_WORDS: typing.ClassVar[int] = 3
    NEW_ROW_ALLOWED_IDS: typing.ClassVar[int] = 20
    NEW_ROW_EPOCH: typing.ClassVar[int] = 1
    NEW_ROW_FLAGS: typing.ClassVar[int] = 2
    NEW_ROW_FREQUENCY_PENALTY: typing.ClassVar[int] = 8
    NEW_ROW_KNOWN_IDS: typing.ClassVar[int] = 16
    NEW_ROW_LOGIT_BIAS: typing.ClassVar[int] = 18
    NEW_ROW_MASKED_IDS: typing.ClassVar[int] = 22
    NEW_ROW_MIN_P: typing.ClassVar[int] = 6
    NEW_ROW_MIN_TOKENS: typing.ClassVar[int] = 13
    NEW_ROW_NUM_LOGPROBS: typing.ClassVar[int] = 14
    NEW_ROW_PRESENCE_PENALTY: typing.ClassVar[int] = 7
    NEW_ROW_PROMPT_LEN: typing.ClassVar[int] = 12
    NEW_ROW_REPETITION_PENALTY: typing.ClassVar[int] = 9
    NEW_ROW_ROW: typing.ClassVar[int] = 0
    NEW_ROW_SCORE_START: typing.ClassVar[int] = 15
    NEW_ROW_SEED_HIGH: typing.ClassVar[int] = 11
    NEW_ROW_SEED_LOW: typing.ClassVar[int] = 10
    NEW_ROW_TEMPERATURE: typing.ClassVar[int] = 3
    NEW_ROW_TOP_K: typing.ClassVar[int] = 5
    NEW_ROW_TOP_P: typing.ClassVar[int] = 4
    NEW_ROW_WORDS: typing.ClassVar[int] = 32
    ROW_HOST_TOKENS: typing.ClassVar[int] = 2
    ROW_SAMPLE: typing.ClassVar[int] = 1
    ROW_SCORE: typing.ClassVar[int] = 4
    ROW_WORDS: typing.ClassVar[int] = 4
    SAMPLE_ALLOWED: typing.ClassVar[int] = 32
    SAMPLE_FILTER: typing.ClassVar[int] = 4
    SAMPLE_GREEDY: typing.ClassVar[int] = 1
    SAMPLE_LOGIT_BIAS: typing.ClassVar[int] = 16
    SAMPLE_LOGPROBS: typing.ClassVar[int] = 8
    SAMPLE_MIN_TOKENS: typing.ClassVar[int] = 64
    SAMPLE_PENALTIES: typing.ClassVar[int] = 2
    SAMPLE_SCORE: typing.ClassVar[int] = 128
    STEP_GREEDY_ONLY: typing.ClassVar[int] = 1
    STEP_MASKED: typing.ClassVar[int] = 2
    VERSION: typing.ClassVar[int] = 1

def find_workload(name: str) -> dict[str, typing.Any]:
    """
    Arguments of a workload with a name, or one described as fixed:IN,OUT or uniform:LEAST,LARGEST. Raises ConfigError.
    """

def known_devices() -> dict[str, DeviceLimits]:
    """
    Measured limits by the name that the driver gives.
    """

def load_nccl(library: str = "", folders: collections.abc.Sequence[str] = []) -> tuple[str, int]:
    """
    Path and version (22809 is 2.28.9) of NCCL; the first call that finds it decides for the process. Searched in this order: `library`; what is loaded; $RUNTIME_NCCL_LIB; `folders`; the system. Raises ConfigError with all that was searched.
    """

def replay(path: str) -> ReplayReport:
    """
    Feeds a recorded event log to a new scheduler and compares its decisions. Raises ConfigError.
    """

@typing.overload
def simulate(config: ReplicaConfig, workload: Workload) -> SimulationResult:
    """
    One replica; without the GIL.
    """

@typing.overload
def simulate(config: ReplicaConfig, trace: numpy.ndarray) -> SimulationResult:
    """
    trace: array of dtype simulated_request.
    """

@typing.overload
def simulate_fleet(config: FleetConfig, workload: Workload) -> SimulationResult: ...
@typing.overload
def simulate_fleet(config: FleetConfig, trace: numpy.ndarray) -> SimulationResult: ...
def step_features(plan: typing.Annotated[numpy.typing.ArrayLike, numpy.int32]) -> StepFeatures:
    """
    Of a plan that a Scheduler wrote, int32 words.
    """

def workload_names() -> list[str]:
    """
    Of workloads whose parameters are published.
    """

__version__: str = "0.1.0"
_bridge: typing.Any
simulated_request: numpy.dtypes.VoidDType
