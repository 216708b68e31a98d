"""Progress of each engine core's scheduler, from vLLM's stat logger, once per engine step.

The prober uses it to distinguish a busy engine from a stalled one; the timeout of a probe alone cannot.
vLLM's ``vllm.stat_logger_plugins`` run in the worker's main process, on the event loop's thread.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from .verdict import CRITICAL_STEPS, ProgressSnapshot

__all__ = ["PROBE_PREFIX", "PROGRESS", "EngineProgress", "RankProgress"]

PROBE_PREFIX: Final = "vllmendpoint-probe-"
"""Prefix of a probe's request id. Requests with it do not count as user requests."""

RECENT_SECONDS: Final = 60
"""A step counts as recent for this long, rounded up to the next second."""


class RankProgress:
    """Scheduled tokens, steps and finished user requests of one rank. Times in monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_scheduled: float | None = None
        # The longest step of each second that had a step. All steps would be too many.
        self._longest: deque[tuple[int, float]] = deque(maxlen=RECENT_SECONDS + 1)
        self._stalled_at: float | None = None
        self.tokens_scheduled = 0
        self.user_requests_finished = 0
        """Number of user requests that the engine completed, without aborts, errors and probes."""
        self.last_user_request_finished: float | None = None
        self.holds_kv_blocks = False
        """Whether requests use KV blocks: also finished ones, whose blocks wait for a decode worker."""

    def record_step(self, tokens: int, seconds: float) -> None:
        """Record an engine step that scheduled ``tokens`` and took ``seconds``. Steps without tokens are not
        progress.
        """
        if tokens <= 0:
            return
        now = self._clock()
        self._last_scheduled = now
        self.tokens_scheduled += tokens
        if self._stalled_at is not None and now - seconds <= self._stalled_at:
            # The step that was reported as a stall. Its full length would hide the next stall for three times
            # as long as this one lasted. Without it, a prefill of that length would be reported as a stall
            # every time. So the window becomes its length, not three times its length.
            seconds /= CRITICAL_STEPS
        second = int(now)
        if self._longest and self._longest[-1][0] == second:
            seconds = max(seconds, self._longest.pop()[1])
        self._longest.append((second, max(seconds, 0.0)))

    def mark_stalled(self) -> None:
        """Record that the verdict has just become ``Stalled``."""
        self._stalled_at = self._clock()

    def record_finished(self, requests: Iterable[tuple[str, bool]]) -> None:
        """Record requests that ended in this step: (request id, whether it completed)."""
        users = sum(1 for request_id, ok in requests if ok and not request_id.startswith(PROBE_PREFIX))
        if not users:
            return
        self.user_requests_finished += users
        self.last_user_request_finished = self._clock()

    def snapshot(self) -> ProgressSnapshot:
        horizon = int(self._clock()) - RECENT_SECONDS
        longest = max((seconds for second, seconds in self._longest if second >= horizon), default=0.0)
        return ProgressSnapshot(self._last_scheduled, longest)

    def forget_steps(self) -> None:
        """Discard step durations: steps during the warm-up compile kernels and are not representative."""
        self._longest.clear()


class EngineProgress:
    """Progress of every data-parallel rank. vLLM creates one stat logger for each rank that it manages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ranks: dict[int, RankProgress] = {}

    def add_rank(self, rank: int) -> None:
        """Called when vLLM creates the rank's stat logger. Without it, every timeout would be a stall."""
        self._ranks.setdefault(rank, RankProgress(self._clock))

    @property
    def ranks(self) -> list[int]:
        """Sorted; empty before the engine is created."""
        return sorted(self._ranks)

    @property
    def request_ranks(self) -> list[int | None]:
        """The ranks as requests name them: a single rank is None, because vLLM needs no rank then."""
        return [*self.ranks] if len(self._ranks) > 1 else [None for _ in self._ranks]

    def rank(self, rank: int) -> RankProgress:
        return self._ranks[rank]

    @property
    def holds_kv_blocks(self) -> bool:
        return any(progress.holds_kv_blocks for progress in self._ranks.values())

    def forget_steps(self) -> None:
        for progress in self._ranks.values():
            progress.forget_steps()


PROGRESS: Final = EngineProgress()
"""The process-wide instance: vLLM creates the stat loggers from an entry point, without arguments of ours."""
