"""Sends a changed probe request to the engine once before it is activated.

A payload may satisfy vLLM's request models and still be rejected by the engine: more log probabilities than
the engine allows, token ids that the model lacks, a grammar that does not compile. If it were activated, such
a payload would make every replica unready. A timeout or a dead engine shows nothing about the payload.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from vllmendpoint_api import Mode, Outcome
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.vllm_rejections import VLLMRejection

from .probe import ProbeResult, ProbeTarget, run_probe
from .prober import Prober, ProbeSettings
from .ranks import RankProbers

__all__ = ["ReadRejection", "SendRequest", "TrialResult", "run_trial", "wait_for_trial", "warm_up"]

logger = logging.getLogger(__name__)

WARM_UP_SECONDS: Final = 600.0
"""Timeout of one warm-up request. The first with a temperature compiles the sampler, which takes 14-30 s
without a GPU."""

RETRY_SECONDS: Final = 1.0
"""Interval at which a trial without a result is repeated, or the probe's timeout if that is longer."""

SendRequest = Callable[[], Awaitable[ProbeResult]]
ReadRejection = Callable[[BaseException | None], VLLMRejection | None]
"""Extracts vLLM's rejection from an error. None: the request did not cause the error."""


class TrialResult(Enum):
    ACCEPTED = auto()
    UNKNOWN = auto()
    """The engine gave no answer, so the request is neither accepted nor rejected."""


@dataclass(frozen=True, slots=True)
class _Error:
    detail: str


async def wait_for_trial(
    prober: Prober | RankProbers,
    settings: ProbeSettings,
    read_rejection: ReadRejection,
    wait_for_change: Callable[[], Awaitable[None]],
    on_postponed: Callable[[], None],
) -> bool | VLLMRejection:
    """Try the request of ``settings`` until the engine accepts or rejects it; True if it is accepted.

    ``wait_for_change`` returns when the settings have changed again; the result is False then.
    ``on_postponed`` is called each time the engine gives no answer and the trial is repeated.
    """
    while settings.mode is not Mode.DISABLED and not prober.probes_with(settings):
        current = prober.settings
        result = await run_trial(
            partial(prober.run_trial, settings.request, settings.rules.timeout),
            partial(prober.run_trial, current.request, current.rules.timeout),
            read_rejection,
        )
        if isinstance(result, VLLMRejection):
            return result
        if result is TrialResult.ACCEPTED:
            break
        on_postponed()
        with suppress(TimeoutError):
            await asyncio.wait_for(wait_for_change(), max(RETRY_SECONDS, settings.rules.timeout))
            return False
    return True


async def warm_up(
    targets: Sequence[ProbeTarget],
    request: Mapping[str, Any],
    variant: Mapping[str, Any] | None,
    *,
    minimal: Callable[[], Awaitable[Mapping[str, Any]]],
    read_rejection: ReadRejection,
    clock: Clock,
) -> VLLMRejection | None:
    """Send the first requests to every rank, so that no user request waits for compilation.

    ``variant``: ``request`` with sampling turned on if it is off, and off if it is on. ``minimal`` returns a
    request that the engine is known to accept. Returns the rejection if vLLM rejects ``request``.
    """

    async def send(target: ProbeTarget, request: Mapping[str, Any]) -> ProbeResult:
        result = await run_probe(target, request, WARM_UP_SECONDS, clock)
        logger.info("Warm-up request: outcome=%s seconds=%.2f", result.outcome, result.latency)
        return result

    async def control() -> ProbeResult:
        return await send(targets[0], await minimal())

    result = await run_trial(partial(send, targets[0], request), control, read_rejection)
    if isinstance(result, VLLMRejection):
        return result
    others = [(target, request) for target in targets[1:]]
    others += [(target, variant) for target in targets if variant is not None]
    for target, other in others:
        await send(target, other)
    return None


async def run_trial(
    send: SendRequest, control: SendRequest, read_rejection: ReadRejection
) -> TrialResult | VLLMRejection:
    """``send`` sends the request under trial, ``control`` one that the engine is known to accept.

    An error that vLLM does not report as a rejection counts against the request only if it occurs twice while
    the engine answers ``control``.
    """
    result = _classify(await send(), read_rejection)
    if not isinstance(result, _Error):
        return result
    if (await control()).outcome is not Outcome.COMPLETE:
        return TrialResult.UNKNOWN
    result = _classify(await send(), read_rejection)
    if not isinstance(result, _Error):
        return result
    return VLLMRejection(
        f"The engine answers another request, but this one ends in an error ({result.detail})"
    )


def _classify(result: ProbeResult, read_rejection: ReadRejection) -> TrialResult | VLLMRejection | _Error:
    match result.outcome:
        case Outcome.COMPLETE:
            return TrialResult.ACCEPTED
        case Outcome.TIMEOUT:
            # vLLM validates a request before it schedules it, so tokens show that the request is accepted.
            return TrialResult.ACCEPTED if result.tokens else TrialResult.UNKNOWN
        case Outcome.ENGINE_DEAD:
            return TrialResult.UNKNOWN
        case _:
            return read_rejection(result.error) or _Error(result.detail or result.outcome.value)
