"""Does the engine answer a question? It is asked once before the question comes into force.

A payload may fit vLLM's request models and still be refused by the engine: more log probabilities than it
allows, token ids that the model lacks, a grammar that cannot be compiled. In force, such a payload would take
every replica out of service. A timeout or a dead engine says nothing of the payload and does not refuse it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final

from vllmendpoint_api import Mode, Outcome
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.vllm_rejections import VLLMRejection

from .prober import Engine, Prober, ProbeResult, ProbeSettings, ask
from .ranks import Ranks

__all__ = ["Answered", "Ask", "Reads", "answered", "tried", "warm_up"]

logger = logging.getLogger(__name__)

WARM_UP_SECONDS: Final = 600.0
"""Bound on one warm-up request: the first with a temperature compiles the sampler (14-30 s without a GPU)."""

RETRY_SECONDS: Final = 1.0
"""A trial without an answer is repeated after so long, or the probe's timeout if that is longer."""

Ask = Callable[[], Awaitable[ProbeResult]]
Reads = Callable[[BaseException | None], VLLMRejection | None]
"""What vLLM refuses in an error; None where the request is not at fault."""


class Answered(StrEnum):
    YES = "Yes"
    NO = "No"
    """The engine gave no answer: the payload is neither proven nor refused."""


@dataclass(frozen=True, slots=True)
class _Error:
    detail: str


async def answered(
    prober: Prober | Ranks,
    settings: ProbeSettings,
    reads: Reads,
    changed: Callable[[], Awaitable[None]],
    postponed: Callable[[], None],
) -> bool | VLLMRejection:
    """Wait until the engine has answered the question of ``settings``, if it is not the one in force.

    ``changed`` returns when other settings are there: then False. ``postponed`` is called where the engine
    gives no answer and the trial is repeated.
    """
    while settings.mode is not Mode.DISABLED and not prober.asks(settings):
        now = prober.settings
        answer = await tried(
            partial(prober.trial, settings.request, settings.rules.timeout),
            partial(prober.trial, now.request, now.rules.timeout),
            reads,
        )
        if isinstance(answer, VLLMRejection):
            return answer
        if answer is Answered.YES:
            break
        postponed()
        with suppress(TimeoutError):
            await asyncio.wait_for(changed(), max(RETRY_SECONDS, settings.rules.timeout))
            return False
    return True


async def warm_up(
    engines: Sequence[Engine],
    question: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    *,
    minimal: Callable[[], Awaitable[Mapping[str, Any]]],
    reads: Reads,
    clock: Clock,
) -> VLLMRejection | None:
    """Ask the first question of all, of every rank, so that no user pays for the compilation.

    ``other``: the same with sampling the other way round; ``minimal``: a question that is known to be good.
    Returns the refusal where vLLM refuses the question.
    """

    async def asked(engine: Engine, request: Mapping[str, Any]) -> ProbeResult:
        result = await ask(engine, request, WARM_UP_SECONDS, clock)
        logger.info("Warm-up: %s in %.2f s", result.outcome, result.latency)
        return result

    async def control() -> ProbeResult:
        return await asked(engines[0], await minimal())

    answer = await tried(partial(asked, engines[0], question), control, reads)
    if isinstance(answer, VLLMRejection):
        return answer
    rest = [(engine, question) for engine in engines[1:]]
    rest += [(engine, other) for engine in engines if other is not None]
    for engine, request in rest:
        await asked(engine, request)
    return None


async def tried(ask: Ask, control: Ask, reads: Reads) -> Answered | VLLMRejection:
    """Ask the question. ``control`` asks one that is known to be good; ``reads`` vLLM's errors.

    An error that is no refusal by vLLM's own account counts against the payload only where it comes twice
    while the same engine answers ``control``.
    """
    answer = _judged(await ask(), reads)
    if not isinstance(answer, _Error):
        return answer
    if (await control()).outcome is not Outcome.COMPLETE:
        return Answered.NO
    answer = _judged(await ask(), reads)
    if not isinstance(answer, _Error):
        return answer
    return VLLMRejection(
        f"The engine answers another question, but this one ends in an error ({answer.detail})"
    )


def _judged(result: ProbeResult, reads: Reads) -> Answered | VLLMRejection | _Error:
    match result.outcome:
        case Outcome.COMPLETE:
            return Answered.YES
        case Outcome.TIMEOUT:
            # vLLM checks a request before the engine works on it: tokens prove that it passed.
            return Answered.YES if result.tokens else Answered.NO
        case Outcome.ENGINE_DEAD:
            return Answered.NO
        case _:
            return reads(result.error) or _Error(result.detail or result.outcome.value)
