"""One prober for each data-parallel rank, shown as one: the worst rank's verdict is the worker's.

With ``--data-parallel-size`` above 1 one worker has several engine cores, and vLLM spreads requests over
them. A frozen rank would be hidden by the progress of the others, and answers none of its own requests.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from vllmendpoint_api import RankReport, Verdict
from vllmendpoint_worker.process.clock import Clock

from .prober import Engine, Prober, ProbeResult, ProbeSettings
from .progress import EngineProgress
from .verdict import State

__all__ = ["RankedEngine", "Ranks"]

_WORST: Final = (
    Verdict.DEAD,
    Verdict.STALLED,
    Verdict.FAILING,
    Verdict.STARTING,
    Verdict.BUSY,
    Verdict.GENERATING,
)


class RankedEngine(Protocol):
    def rank(self, rank: int | None) -> Engine:
        """The engine as one of its ranks; None: it has one only."""
        ...


class Ranks:
    """The probers of all ranks. The parameters are :class:`Prober`'s."""

    def __init__(
        self,
        engine: RankedEngine,
        settings: ProbeSettings,
        *,
        progress: EngineProgress,
        publish: Callable[[], None],
        ended: Callable[[ProbeResult], None],
        clock: Clock | None = None,
    ) -> None:
        self._probers: Mapping[int, Prober] = {
            rank: Prober(
                engine.rank(named),
                settings,
                progress=progress.rank(rank),
                publish=publish,
                ended=ended,
                clock=clock,
                name="" if named is None else f"data-parallel rank {rank}",
            )
            for rank, named in zip(progress.ranks, progress.named, strict=True)
        }

    @property
    def _first(self) -> Prober:
        return next(iter(self._probers.values()))

    def _worst(self) -> tuple[int, Prober]:
        return min(self._probers.items(), key=lambda item: _WORST.index(item[1].state.verdict))

    @property
    def settings(self) -> ProbeSettings:
        return self._first.settings

    @property
    def state(self) -> State:
        """The worst rank's; its message names the rank."""
        rank, prober = self._worst()
        state = prober.state
        if len(self._probers) == 1 or not state.message:
            return state
        alike = sum(other.state.verdict is state.verdict for other in self._probers.values())
        return state.renamed(
            f"Data-parallel rank {rank} is {state.verdict.value.lower()} "
            f"({alike} of {len(self._probers)} ranks): {state.message}"
        )

    @property
    def last(self) -> ProbeResult | None:
        return self._worst()[1].last

    @property
    def last_proof(self) -> float | None:
        """The oldest of the ranks' newest."""
        proofs = [prober.last_proof for prober in self._probers.values()]
        return None if None in proofs else min(proof for proof in proofs if proof is not None)

    def report(self) -> tuple[RankReport, ...]:
        """Empty where there is one rank only."""
        if len(self._probers) == 1:
            return ()
        return tuple(
            RankReport(rank=rank, state=prober.state.verdict, reason=prober.state.reason)
            for rank, prober in self._probers.items()
        )[:256]

    def configure(self, settings: ProbeSettings) -> None:
        for prober in self._probers.values():
            prober.configure(settings)

    def asks(self, settings: ProbeSettings) -> bool:
        return self._first.asks(settings)

    async def trial(self, request: Mapping[str, Any], bound: float) -> ProbeResult:
        """On the rank that is in the best health: a frozen one tells nothing of a question."""
        best = max(self._probers.values(), key=lambda prober: _WORST.index(prober.state.verdict))
        return await best.trial(request, bound)

    async def probe_now(self) -> ProbeResult:
        """A probe of every rank; the result of the worst."""
        await asyncio.gather(*(prober.probe_now() for prober in self._probers.values()))
        last = self.last
        assert last is not None, "every rank has just been probed"
        return last

    async def run(self) -> None:
        """Probe until cancelled; one rank's prober that fails ends all."""
        async with asyncio.TaskGroup() as group:
            for rank, prober in self._probers.items():
                group.create_task(prober.run(), name=f"prober-{rank}")
