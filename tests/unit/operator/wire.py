"""Objects as lists and watches bring them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from msgspec import json

from vllmendpoint_operator.kube.lists import Parts

__all__ = ["listing", "parts"]


def parts(obj: dict[str, Any]) -> Parts:
    found: Parts = json.decode(json.encode(obj), type=Parts)
    return found


@contextlib.asynccontextmanager
async def listing(*objects: dict[str, Any]) -> AsyncIterator[tuple[str, AsyncIterator[Parts]]]:
    """As :meth:`vllmendpoint_operator.kube.client.Kube.listing`."""

    async def items() -> AsyncIterator[Parts]:
        for obj in objects:
            yield parts(obj)

    yield "10", items()
