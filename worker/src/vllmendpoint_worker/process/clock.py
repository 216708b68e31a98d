"""The clock that time-dependent code receives as an argument, so that tests control it."""

import time
from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]


class Clock:
    """Monotonic seconds for decisions, wall time for reports."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def wall_of(self, moment: float) -> datetime:
        """The wall time of a monotonic time."""
        return self.wall() - timedelta(seconds=self.monotonic() - moment)
