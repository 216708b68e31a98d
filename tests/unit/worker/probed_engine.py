"""A fake engine, a prober for it, and waiting in the time of the running loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.worker.virtual_time import LoopClock
from vllmendpoint_api import Mode
from vllmendpoint_worker.probing.prober import Prober, ProbeSettings
from vllmendpoint_worker.probing.progress import RankProgress
from vllmendpoint_worker.probing.verdict import VerdictRules

GOOD = [{"index": 0, "token_ids": [5]}, {"index": 0, "token_ids": [6], "finish_reason": "length"}]


def now() -> float:
    return asyncio.get_running_loop().time()


class FakeEngine:
    """``behaviour``: "answer", "hang", "raise", "cancelled" or "wait" (for ``go``). ``users``: number of user
    requests in flight.
    """

    def __init__(self, progress: RankProgress | None = None) -> None:
        self.behaviour = "answer"
        self.go = asyncio.Event()
        self.chunks: list[dict[str, Any]] = list(GOOD)
        self.users = 0
        self.gone: str | None = None
        self.request_times: list[float] = []
        self.requests: list[Mapping[str, Any]] = []
        self.running = 0
        self.most_running = 0
        self.aborted = 0
        self.ids: list[str] = []
        self.progress = progress or RankProgress(now)

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        self.request_times.append(now())
        self.requests.append(request)
        self.ids.append(request_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.behaviour == "hang":
                await asyncio.Event().wait()
            if self.behaviour == "wait":
                await self.go.wait()
            if self.behaviour == "raise":
                raise ValueError("hunter2")
            if self.behaviour == "cancelled":
                raise asyncio.CancelledError
            for chunk in self.chunks:
                self.progress.record_step(1, 0.001)
                yield chunk
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    def in_flight(self) -> int:
        return self.users + self.running

    def dead(self) -> str | None:
        return self.gone


def settings(
    period: float = 0.5, timeout: float = 0.3, mode: Mode = Mode.ENFORCE, **request: Any
) -> ProbeSettings:
    return ProbeSettings(request or {"token_ids": [1]}, mode, period, VerdictRules(timeout, 2, 1))


@asynccontextmanager
async def probing(engine: FakeEngine, given: ProbeSettings) -> AsyncIterator[Prober]:
    prober = Prober(engine, given, progress=engine.progress, publish=lambda: None, clock=LoopClock())
    task = asyncio.create_task(prober.run())
    try:
        yield prober
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)


async def until(condition: Any, seconds: float = 5.0) -> float:
    started = now()
    while not condition():
        assert now() - started < seconds, "the condition did not become true in time"
        await asyncio.sleep(0.01)
    return now() - started


def letters(tokens: Sequence[int]) -> str:
    """A tokenizer's decoder: token 5 is "e", token 6 is "f"."""
    return "".join(chr(96 + token) for token in tokens)
