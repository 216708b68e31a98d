"""A keyed work queue with the semantics of client-go's rate-limited queue, and with priorities.

A key waits at most once, runs at most once at a time, and has a backoff of its own.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["WorkQueue"]

BACKOFF_MIN_SECONDS: Final = 0.5
BACKOFF_MAX_SECONDS: Final = 60.0

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """A key that is added while it runs waits again after the run.

    Urgent keys go first: a change of readiness must not wait behind a burst of new endpoints.
    """

    def __init__(self) -> None:
        self._urgent: OrderedDict[Key, float] = OrderedDict()
        self._normal: OrderedDict[Key, float] = OrderedDict()
        """Waiting keys, each with the time at which it was added."""
        self._running: set[Key] = set()
        """Keys that run or cool down."""
        self._dirty: dict[Key, bool] = {}
        """Keys of ``_running`` that were added again -> whether urgently."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._cooling_down: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._not_empty = asyncio.Event()

    def __len__(self) -> int:
        """Number of waiting keys."""
        return len(self._urgent) + len(self._normal)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        if key in self._running:
            self._dirty[key] = self._dirty.get(key, False) or urgent
            return
        now = asyncio.get_running_loop().time()
        if urgent:
            self._urgent.setdefault(key, self._normal.pop(key, now))
        elif key not in self._urgent:
            self._normal.setdefault(key, now)
        self._not_empty.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Add the key later. The earliest of several delays applies; none if the key waits already."""
        if key in self._normal or key in self._urgent:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._on_timer, key)

    def add_rate_limited(self, key: Key) -> float:
        """Add the key after an exponential backoff with jitter. Return the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_MIN_SECONDS * 2.0 ** min(failures - 1, 16))
        delay = random.uniform(ceiling / 2, ceiling)
        self.add_after(key, delay)
        return delay

    def reset_backoff(self, key: Key) -> None:
        """Start the next backoff of the key at the minimum."""
        self._failures.pop(key, None)

    def is_running(self, key: Key) -> bool:
        return key in self._running

    async def get(self) -> tuple[Key, float]:
        """Return the next key and the seconds that it waited. Call :meth:`done` after its run."""
        while not self._urgent and not self._normal:
            self._not_empty.clear()
            await self._not_empty.wait()
        waiting = self._urgent or self._normal
        key, added = waiting.popitem(last=False)
        self._running.add(key)
        # This run covers what the timer was set for.
        self._cancel_timer(key)
        return key, asyncio.get_running_loop().time() - added

    def done(self, key: Key, *, cooldown: float = 0.0) -> None:
        """End the run of the key. It does not run again for ``cooldown`` seconds, even if it is added."""
        if cooldown > 0:
            loop = asyncio.get_running_loop()
            self._cooling_down[key] = loop.call_later(cooldown, self._end_cooldown, key)
            return
        self._running.discard(key)
        if key in self._dirty:
            self.add(key, urgent=self._dirty.pop(key))

    def close(self) -> None:
        """Cancel all timers."""
        for timers in (self._timers, self._cooling_down):
            for timer in timers.values():
                timer.cancel()
            timers.clear()

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    def _end_cooldown(self, key: Key) -> None:
        del self._cooling_down[key]
        self.done(key)
