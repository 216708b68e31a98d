"""What the states of a worker and of a frontend have in common: a snapshot that is replaced under a lock."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from vllmendpoint_api import Stage, StageReport
from vllmendpoint_worker.process.clock import Clock

__all__ = ["MAX_WORD", "Snapshot", "SnapshotHolder"]

MAX_WORD: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The content of a report that every program has."""

    stage: StageReport
    started: bool = False


AnySnapshot = TypeVar("AnySnapshot", bound=Snapshot)


class SnapshotHolder(ABC, Generic[AnySnapshot]):
    """Thread-safe holder of the current snapshot.

    Callbacks of ``subscribe`` are called on the thread that changes the state, and must only schedule work on
    their own loop.
    """

    def __init__(self, snapshot: AnySnapshot, *, worker_version: str, pod_uid: str, clock: Clock) -> None:
        self._clock = clock
        self._worker_version = worker_version[:MAX_WORD]
        self._pod_uid = pod_uid[:MAX_WORD]
        self._lock = threading.RLock()  # a signal handler may update the state during another update
        self._subscribers: list[Callable[[], None]] = []
        self._snapshot = snapshot

    @property
    def snapshot(self) -> AnySnapshot:
        return self._snapshot

    @property
    def stage(self) -> Stage:
        """The phase of the program's lifecycle, and the only record of it."""
        return Stage(self._snapshot.stage.name)

    @property
    def started(self) -> bool:
        return self._snapshot.started

    def subscribe(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._subscribers.append(callback)

    def update(self, **changes: Any) -> None:
        """Replace fields of the snapshot. Calls the subscribers if the change is not only volatile."""
        with self._lock:
            before = self._snapshot
            self._snapshot = replace(before, **changes)
            changed = self._without_volatile(self._snapshot) != self._without_volatile(before)
            subscribers = list(self._subscribers) if changed else []
        for callback in subscribers:
            callback()

    @staticmethod
    @abstractmethod
    def _without_volatile(snapshot: AnySnapshot) -> AnySnapshot:
        """The snapshot without what changes so often that only the next line of a stream includes it."""
