"""Reads the signatures of functions."""

import inspect
from collections.abc import Callable
from typing import Any


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters, in order."""
    return list(inspect.signature(function).parameters)
