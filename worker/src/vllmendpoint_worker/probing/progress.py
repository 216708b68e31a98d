"""What each engine core's scheduler does, as vLLM's stat logger hands it over, once an engine step.

Read by the prober to tell busy from stalled: a probe's timeout alone cannot. Filled in the worker's main
process only (``vllm.stat_logger_plugins`` runs there), on the event loop's thread.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from .verdict import CRITICAL_STEPS, ProgressSeen

__all__ = ["PROBE_PREFIX", "PROGRESS", "EngineProgress", "Progress"]

PROBE_PREFIX: Final = "vllmendpoint-probe-"
"""Start of a probe's request id, so that our own probes do not count as user traffic."""

RECENT_SECONDS: Final = 60
"""How long a step counts as recent, at least; to the second."""


class Progress:
    """Tokens scheduled, steps and finished user requests of one rank. Times in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_scheduled: float | None = None
        # The longest step of each second that had one: an engine takes too many steps to keep them all.
        self._longest: deque[tuple[int, float]] = deque(maxlen=RECENT_SECONDS + 1)
        self._stalled_at: float | None = None
        self.tokens_scheduled = 0
        self.users_finished = 0
        """User requests that the engine finished (not aborted, not errors, not our probes)."""
        self.last_user_finished: float | None = None

    def step(self, tokens: int, seconds: float) -> None:
        """One engine step that scheduled ``tokens`` and took ``seconds``; a step without tokens is no
        progress.
        """
        if tokens <= 0:
            return
        now = self._clock()
        self._last_scheduled = now
        self.tokens_scheduled += tokens
        if self._stalled_at is not None and now - seconds <= self._stalled_at:
            # The step that the stall was: it ends now, with the stall in it. Counted whole it would hide the
            # next stall for three times as long as this one lasted; left out, a prefill that really is so
            # long would be called a stall every time. So the window becomes its length, not three of it.
            seconds /= CRITICAL_STEPS
        second = int(now)
        if self._longest and self._longest[-1][0] == second:
            seconds = max(seconds, self._longest.pop()[1])
        self._longest.append((second, max(seconds, 0.0)))

    def stalled(self) -> None:
        """The engine has just been found stalled."""
        self._stalled_at = self._clock()

    def finished(self, requests: Iterable[tuple[str, bool]]) -> None:
        """Requests that ended in this step: (request id, whether it ended well)."""
        users = sum(1 for request_id, well in requests if well and not request_id.startswith(PROBE_PREFIX))
        if not users:
            return
        self.users_finished += users
        self.last_user_finished = self._clock()

    def seen(self) -> ProgressSeen:
        horizon = int(self._clock()) - RECENT_SECONDS
        longest = max((seconds for second, seconds in self._longest if second >= horizon), default=0.0)
        return ProgressSeen(self._last_scheduled, longest)

    def forget_steps(self) -> None:
        """Forget step lengths: warm-up compiles kernels, and those steps say nothing of later ones."""
        self._longest.clear()


class EngineProgress:
    """The progress of every data-parallel rank. vLLM makes one stat logger for each rank that it manages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ranks: dict[int, Progress] = {}

    def attach(self, rank: int) -> None:
        """vLLM has made the rank's stat logger. Without it every timeout would look like a stall."""
        self._ranks.setdefault(rank, Progress(self._clock))

    @property
    def ranks(self) -> list[int]:
        """In order; empty before the engine is made."""
        return sorted(self._ranks)

    @property
    def named(self) -> list[int | None]:
        """The ranks as a request names them: None where there is one only, which needs no name."""
        return [*self.ranks] if len(self._ranks) > 1 else [None for _ in self._ranks]

    def rank(self, rank: int) -> Progress:
        return self._ranks[rank]

    def forget_steps(self) -> None:
        for progress in self._ranks.values():
            progress.forget_steps()


PROGRESS: Final = EngineProgress()
"""The process's own: vLLM makes the stat loggers itself, from an entry point; none can be handed to them."""
