"""From the result of a step to what callers see."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from runtime.engine.request import Completion
from runtime.log import get_logger

if TYPE_CHECKING:
    from runtime import _core

logger = get_logger(__name__)

# by the `finish` codes of a StepResult
FINISH_REASONS = (None, "stop", "length", "abort", "error")


class StepValues(Protocol):
    """What a step knows beside its tokens, by the row's index in the plan."""

    launched_at: float  # time.perf_counter()

    def logprobs(self, row: int, num_top: int) -> tuple[list[int], list[float]]:
        """Ids and logprobs: the sampled token, then the top ones."""

    def scores(self, row: int) -> list[tuple[list[int], list[float]]]:
        """Likewise, of each scored prompt token of a request that has ended: the token itself, then the top ones."""


class OutputProcessor:
    """Appends tokens to completions, finds stop strings, ends completions. Engine thread only, but for `add`.

    Args:
        stop: tells the scheduler that a stop string ended a request after so many tokens.
        abort: tells it that a request has failed.
        started: called with a completion when its first token has come, or the scores of its prompt.
    """

    def __init__(
        self,
        stop: Callable[[int, int], object],
        abort: Callable[[int], object],
        started: Callable[[Completion], None],
    ) -> None:
        self._stop = stop
        self._abort = abort
        self._started = started
        self._live: dict[int, Completion] = {}

    @property
    def num_live(self) -> int:
        """Completions that have not been closed."""
        return len(self._live)

    def add(self, completion: Completion) -> None:
        """Its tokens will be appended from now on."""
        self._live[completion.request_id] = completion

    def live(self, request_id: int) -> Completion | None:
        """One that has not been closed."""
        return self._live.get(request_id)

    def discard(self, completion: Completion) -> None:
        """Its tokens are ignored from now on."""
        self._live.pop(completion.request_id, None)

    def process(self, result: _core.StepResult, step: StepValues | None) -> None:
        """Emits one step, in the order of the result; without a step, what ended outside of one."""
        now, live = time.perf_counter(), self._live
        if step is not None:
            for request_id in result.started.tolist():
                if (completion := live.get(request_id)) is not None and completion.scheduled_at is None:
                    completion.scheduled_at = step.launched_at
        events = zip(
            result.request_ids.tolist(), result.token_ids.tolist(), result.finish.tolist(), result.rows.tolist()
        )
        for i, (request_id, token_id, finish, row) in enumerate(events):
            completion = live.get(request_id)
            if completion is None:
                continue
            try:
                self._emit(completion, token_id, finish, row, step, now)
                if finish:
                    self._end(completion, finish, result, i, step)
            except Exception as error:  # one request's text or logprobs must not end the others
                logger.exception("request %s failed", completion.handle.request_id)
                self.fail(completion, error)
                self._abort(request_id)

    def fail(self, completion: Completion, error: BaseException) -> None:
        """Ends a completion with an error that its caller gets."""
        completion.finish("error", error=error)
        self._close(completion)

    def fail_all(self, error: BaseException) -> None:
        """Ends everything, such as when a step has failed."""
        for completion in list(self._live.values()):
            self.fail(completion, error)

    def _emit(
        self, completion: Completion, token_id: int, finish: int, row: int, step: StepValues | None, now: float
    ) -> None:
        """One token. A completion that has ended for its caller only waits for the scheduler's last word."""
        if token_id < 0 or completion.finished:
            return
        if finish == 1 and not completion.handle.params.include_stop_str_in_output:
            # said before the token is there: a reader of the text may come between
            completion.num_text_tokens = len(completion.token_ids)
        completion.token_ids.append(token_id)
        if completion.first_token_at is None:
            completion.first_token_at = now
            self._started(completion)
        if completion.has_logprobs and step is not None:
            completion.raw_logprobs.append(step.logprobs(row, completion.handle.params.logprobs or 0))
        if completion.has_stop_strings and finish != 1:
            self._check_stop_strings(completion)
        if completion.handle.listeners:
            completion.handle.notify()

    def _check_stop_strings(self, completion: Completion) -> None:
        stop = completion.advance_text(len(completion.token_ids))
        if stop is not None:
            self._stop(completion.request_id, len(completion.token_ids))
            completion.finish("stop", stop)

    def _end(
        self, completion: Completion, finish: int, result: _core.StepResult, i: int, step: StepValues | None
    ) -> None:
        """The scheduler's last word on a request."""
        completion.num_cached = int(result.num_cached[i])
        completion.num_preemptions = int(result.num_preemptions[i])
        if not completion.finished:
            if completion.is_scoring and step is not None and result.rows[i] >= 0:
                completion.scores = step.scores(int(result.rows[i]))
            completion.finish(*self._reason(completion, finish, int(result.stop_ids[i])))
            if completion.scores:
                self._started(completion)
        self._close(completion)

    def _reason(self, completion: Completion, finish: int, stop_id: int) -> tuple[str, int | str | None]:
        """(finish reason, stop reason); an end-of-sequence token is no stop reason."""
        reason = FINISH_REASONS[finish] or "error"
        found = completion.finish_text() if completion.has_stop_strings else None
        if found is not None and reason in ("stop", "length"):
            return "stop", found
        return reason, stop_id if stop_id >= 0 else None

    def _close(self, completion: Completion) -> None:
        self.discard(completion)
        for waiting in completion.handle.take_deferred():  # it never came to its first token
            self.discard(waiting)
            waiting.finish(completion.finish_reason or "error", error=completion.error)
            waiting.close()
        completion.close()
