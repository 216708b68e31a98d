"""A keyed work queue: a key waits at most once, runs at most once at a time, and backs off alone."""

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
    """``add`` while a key runs makes it run once more afterwards.

    Urgent keys go first: what turned ready, or stalled, does not wait behind a burst of new ones.
    """

    def __init__(self) -> None:
        self._urgent: OrderedDict[Key, float] = OrderedDict()
        self._normal: OrderedDict[Key, float] = OrderedDict()
        self._running: set[Key] = set()
        self._dirty: dict[Key, bool] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._cooling_down: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._not_empty = asyncio.Event()

    def __len__(self) -> int:
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
        """Add the key later; of several delays for a key the earliest holds, and none once it is added."""
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
        """Add the key after its backoff: exponential, with jitter. Returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_MIN_SECONDS * 2.0 ** min(failures - 1, 16))
        delay = random.uniform(ceiling / 2, ceiling)
        self.add_after(key, delay)
        return delay

    def is_running(self, key: Key) -> bool:
        return key in self._running

    def reset_backoff(self, key: Key) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop the key: no timer, no failures, not waiting."""
        self._cancel(key)
        for store in (self._urgent, self._normal, self._failures, self._dirty):
            store.pop(key, None)

    async def get(self) -> tuple[Key, float]:
        """The next key and the seconds it waited. Call :meth:`done` when it has run."""
        while not self._urgent and not self._normal:
            self._not_empty.clear()
            await self._not_empty.wait()
        store = self._urgent or self._normal
        key, added = store.popitem(last=False)
        self._running.add(key)
        # What it waited for is looked at now.
        self._cancel(key)
        return key, asyncio.get_running_loop().time() - added

    def done(self, key: Key, *, cooldown: float = 0.0) -> None:
        """The key has run. ``cooldown``: seconds in which it does not run again, whatever is added."""
        if cooldown > 0:
            # To the queue it goes on running.
            self._cooling_down[key] = asyncio.get_running_loop().call_later(cooldown, self._end_cooldown, key)
            return
        self._running.discard(key)
        if key in self._dirty:
            self.add(key, urgent=self._dirty.pop(key))

    def close(self) -> None:
        """Cancel every timer."""
        for timers in (self._timers, self._cooling_down):
            for timer in timers.values():
                timer.cancel()
            timers.clear()

    def _cancel(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    def _end_cooldown(self, key: Key) -> None:
        del self._cooling_down[key]
        self.done(key)
