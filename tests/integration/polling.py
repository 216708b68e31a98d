"""Bounded polling for a condition."""

import time
from collections.abc import Callable
from typing import Any


def until(check: Callable[[], Any], what: object = "", seconds: float = 20.0) -> Any:
    """Poll until ``check`` returns a true value, and return it. ``what`` is the message of a timeout."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.05)
    return found
