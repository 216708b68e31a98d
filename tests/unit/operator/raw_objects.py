"""Objects as lists and watches return them: their fields are undecoded JSON."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from msgspec import json

from vllmendpoint_operator.kube.lists import RawObject

__all__ = ["list_stream", "raw_object"]


def raw_object(obj: dict[str, Any]) -> RawObject:
    found: RawObject = json.decode(json.encode(obj), type=RawObject)
    return found


@contextlib.asynccontextmanager
async def list_stream(*objects: dict[str, Any]) -> AsyncIterator[tuple[str, AsyncIterator[RawObject]]]:
    """Like :meth:`vllmendpoint_operator.kube.client.Kube.list_stream`."""

    async def items() -> AsyncIterator[RawObject]:
        for obj in objects:
            yield raw_object(obj)

    yield "10", items()
