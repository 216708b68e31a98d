"""Waiting for what is asserted, with a bound."""

import time
from collections.abc import Callable
from typing import Any


def until(check: Callable[[], Any], what: object = "", seconds: float = 20.0) -> Any:
    """Poll until ``check`` gives something true; what it gave last is told otherwise."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.05)
    return found
