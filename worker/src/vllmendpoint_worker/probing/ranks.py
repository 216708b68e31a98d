"""One prober for each data-parallel rank; the most severe verdict of a rank is the worker's.

With ``--data-parallel-size`` above 1, a worker has several engine cores, and vLLM distributes requests among
them. One prober for all would not notice a stalled rank, because the other ranks make progress.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from vllmendpoint_api import RankReport, Verdict
from vllmendpoint_worker.process.clock import Clock

from .probe import ProbeResult, ProbeTarget
from .prober import Prober, ProbeSettings
from .progress import EngineProgress
from .verdict import VerdictState

__all__ = ["RankProbers", "RankedTarget"]

_BY_SEVERITY: Final = (
    Verdict.DEAD,
    Verdict.STALLED,
    Verdict.FAILING,
    Verdict.STARTING,
    Verdict.BUSY,
    Verdict.GENERATING,
)


class RankedTarget(Protocol):
    def rank(self, rank: int | None) -> ProbeTarget:
        """One rank of the engine. None: the engine has only one."""
        ...


class RankProbers:
    """The probers of all ranks, with the interface of one. The parameters are those of :class:`Prober`."""

    def __init__(
        self,
        engine: RankedTarget,
        settings: ProbeSettings,
        *,
        progress: EngineProgress,
        publish: Callable[[], None],
        on_result: Callable[[ProbeResult], None],
        clock: Clock | None = None,
    ) -> None:
        self._probers: Mapping[int, Prober] = {
            rank: Prober(
                engine.rank(request_rank),
                settings,
                progress=progress.rank(rank),
                publish=publish,
                on_result=on_result,
                clock=clock,
                rank=request_rank,
            )
            for rank, request_rank in zip(progress.ranks, progress.request_ranks, strict=True)
        }

    @property
    def _first(self) -> Prober:
        return next(iter(self._probers.values()))

    def _most_severe(self) -> tuple[int, Prober]:
        return min(self._probers.items(), key=lambda item: _BY_SEVERITY.index(item[1].state.verdict))

    @property
    def settings(self) -> ProbeSettings:
        return self._first.settings

    @property
    def state(self) -> VerdictState:
        """The state of the rank with the most severe verdict. With several ranks, the message names it."""
        rank, prober = self._most_severe()
        state = prober.state
        if len(self._probers) == 1 or not state.message:
            return state
        count = sum(other.state.verdict is state.verdict for other in self._probers.values())
        return state.with_message(
            f"Data-parallel rank {rank} is {state.verdict.value.lower()} "
            f"({count} of {len(self._probers)} ranks): {state.message}"
        )

    @property
    def last_result(self) -> ProbeResult | None:
        return self._most_severe()[1].last_result

    @property
    def last_proof(self) -> float | None:
        """The last proof of life of the rank whose is oldest; None if a rank has none."""
        return _oldest([prober.last_proof for prober in self._probers.values()])

    @property
    def proof(self) -> float | None:
        """As for a prober: the oldest of the ranks' last ones; None if a rank has none."""
        return _oldest([prober.proof for prober in self._probers.values()])

    @property
    def last_complete(self) -> ProbeResult | None:
        """The newest complete probe of a rank."""
        results = [prober.last_complete for prober in self._probers.values()]
        return max((one for one in results if one is not None), key=lambda one: one.ended, default=None)

    def report(self) -> tuple[RankReport, ...]:
        """Empty if there is only one rank."""
        if len(self._probers) == 1:
            return ()
        return tuple(
            RankReport(rank=rank, state=prober.state.verdict, reason=prober.state.reason)
            for rank, prober in self._probers.items()
        )[:256]

    def configure(self, settings: ProbeSettings) -> None:
        for prober in self._probers.values():
            prober.configure(settings)

    def probes_with(self, settings: ProbeSettings) -> bool:
        return self._first.probes_with(settings)

    async def run_trial(self, request: Mapping[str, Any], timeout: float) -> ProbeResult:  # noqa: ASYNC109
        """On the rank with the least severe verdict: a stalled rank shows nothing about the request."""
        best = max(self._probers.values(), key=lambda prober: _BY_SEVERITY.index(prober.state.verdict))
        return await best.run_trial(request, timeout)

    async def probe_now(self, *, join: bool = False) -> ProbeResult:
        """Probe every rank; returns the result of the rank with the most severe verdict."""
        await asyncio.gather(*(prober.probe_now(join=join) for prober in self._probers.values()))
        last = self.last_result
        assert last is not None, "every rank has just been probed"
        return last

    async def run(self) -> None:
        """Probe until cancelled. If the prober of one rank fails, all are cancelled."""
        async with asyncio.TaskGroup() as group:
            for rank, prober in self._probers.items():
                group.create_task(prober.run(), name=f"prober-{rank}")


def _oldest(proofs: Sequence[float | None]) -> float | None:
    return None if None in proofs else min(proof for proof in proofs if proof is not None)
