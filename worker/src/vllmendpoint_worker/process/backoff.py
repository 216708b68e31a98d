"""Exponential backoff with jitter."""

import random
from typing import Final

__all__ = ["pause"]

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0


def pause(failures: int) -> float:
    """Seconds until the next attempt: doubled with each failure, at most a minute, with a jitter of 20 %."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16)
    return min(doubled, LONGEST_PAUSE_SECONDS) * random.uniform(0.8, 1.2)
