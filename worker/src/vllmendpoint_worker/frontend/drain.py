"""Drains the frontend's requests before it shuts down."""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_worker.process.clock import Clock

from .probing.probe import Client

__all__ = ["drain", "drain_seconds", "requests_in_flight"]

logger = logging.getLogger(__name__)


DEFAULT_DRAIN_SECONDS: Final = 105.0
"""Longest drain, including ``ANNOUNCE_SECONDS``, without an operator."""

ANNOUNCE_SECONDS: Final = 5.0
"""The frontend serves new requests for this long, until all nodes have removed it from the Service."""

POLL_SECONDS: Final = 0.25
QUIET_SECONDS: Final = 1.0
"""No request has been in flight for this long at the end: a client that uses a kept connection learns with
its next response that the connection is closed.
"""
GET_TIMEOUT_SECONDS: Final = 2.0
_GAUGE: Final = re.compile(
    r"^(\w+_(?:active_requests|inflight_requests|queued_requests))(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE
)


def requests_in_flight(metrics: str) -> int:
    """The number of requests that Dynamo's frontend is handling, from its ``/metrics``.

    Each gauge counts requests between other points, so the largest one counts. The prefix of the names is
    configurable.
    """
    sums: dict[str, float] = {}
    for name, value in _GAUGE.findall(metrics):
        sums[name] = sums.get(name, 0.0) + float(value)
    return int(max(sums.values(), default=0.0))


def drain_seconds(environ: Mapping[str, str]) -> float:
    """``VLLMENDPOINT_DRAIN_SECONDS``, or the default if it is not a number from 0 to 86400."""
    text = environ.get(names.ENV_DRAIN_SECONDS, "").strip()
    try:
        seconds = float(text) if text else DEFAULT_DRAIN_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 86400.0:
        logger.error("The variable is not a number of seconds: name=%s", names.ENV_DRAIN_SECONDS)
        return DEFAULT_DRAIN_SECONDS
    return seconds


async def drain(client: Client, seconds: float, clock: Clock) -> int:
    """Return the number of requests in flight at the end: 0, unless ``seconds`` have passed."""
    deadline = clock.monotonic() + seconds
    await asyncio.sleep(min(ANNOUNCE_SECONDS, seconds))
    last_busy = clock.monotonic()
    count = 0
    while clock.monotonic() < deadline:
        try:
            response = await client.get("/metrics", GET_TIMEOUT_SECONDS)
            count = requests_in_flight(response.body.decode(errors="replace"))
        except (OSError, ValueError) as error:
            logger.warning("The HTTP server does not respond: error=%s", type(error).__name__)
            return count
        now = clock.monotonic()
        if count:
            last_busy = now
        elif now - last_busy >= QUIET_SECONDS:
            return 0
        await asyncio.sleep(POLL_SECONDS)
    return count
