"""When the publisher reports that the engine has stopped."""

import types
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.worker.probed_engine import settings
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Mode, Verdict
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.verdict import VerdictState
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)


def prober(verdict: Verdict, mode: Mode) -> Any:
    return types.SimpleNamespace(
        state=replace(VerdictState.start(0.0), verdict=verdict),
        settings=settings(mode=mode),
        last_result=None,
        last_proof=None,
        report=lambda: (),
    )


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.DISABLED])
@on_virtual_time
async def test_requests_move_in_every_mode_that_has_a_verdict(verdict: Verdict, mode: Mode) -> None:
    clock = LoopClock()
    publisher = HealthPublisher(WorkerState(worker_version="1", clock=clock), clock)
    called: list[Verdict] = []
    publisher.on_stopped.append(lambda: called.append(publisher.verdict))
    publisher.publish()
    assert called == [], "no prober yet"
    publisher.prober = prober(verdict, mode)
    publisher.publish()
    stalled = verdict is Verdict.STALLED and mode is not Mode.DISABLED
    assert called == ([verdict] if stalled or verdict is Verdict.DEAD else [])
    assert publisher.is_stopped() is bool(called)
