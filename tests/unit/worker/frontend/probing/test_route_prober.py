"""The prober with a fake HTTP server, on virtual time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.fake_frontend import FakeFrontend, FakeWorker
from tests.unit.worker.probed_routes import Probed, probing
from tests.unit.worker.virtual_time import on_virtual_time
from vllmendpoint_api import RouteState, Stage, names
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.frontend.http_client import HttpResponse

pytestmark = pytest.mark.timeout(30)


@on_virtual_time
async def test_the_frontend_is_ready_soon_after_a_worker_is_accepted(tmp_path: Path) -> None:
    frontend = FakeFrontend()
    async with probing(frontend, tmp_path) as probed:
        await probed.until(lambda: probed.state.stage is Stage.SERVING)
        assert probed.state.started
        assert probed.state.readiness() == (False, "The frontend has not discovered a worker.")
        await asyncio.sleep(30.0)
        frontend.workers[1] = FakeWorker()
        took = await probed.until(lambda: probed.state.readiness()[0])
        assert took < 0.5, "a new worker is probed immediately"
        frontend.workers[2] = FakeWorker()
        assert await probed.until(lambda: probed.states == [RouteState.ANSWERED] * 2) < 1.5
        frontend.workers.clear()
        assert await probed.until(lambda: not probed.state.readiness()[0]) < 1.5


@on_virtual_time
async def test_each_route_is_probed_once_per_period(tmp_path: Path) -> None:
    frontend = FakeFrontend({number * 7919: FakeWorker() for number in range(1, 11)})
    async with probing(frontend, tmp_path, periodSeconds=10) as probed:
        await probed.until(lambda: probed.states == [RouteState.ANSWERED] * 10)
        await asyncio.sleep(10.0)
        frontend.posts.clear()
        counts = []
        for _ in range(10):
            await asyncio.sleep(1.0)
            counts.append(len(frontend.posts))
            frontend.posts.clear()
        assert sum(counts) == 10
        assert max(counts) <= 4, "the probes are spread over the period"


@on_virtual_time
async def test_a_worker_that_hangs_is_failing_and_recovers_with_one_answer(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker(), 2: FakeWorker()})
    async with probing(frontend, tmp_path, periodSeconds=1, timeoutSeconds=1) as probed:
        await probed.until(lambda: probed.states == [RouteState.ANSWERED] * 2)
        frontend.workers[1].behaviour = "hang"
        took = await probed.until(lambda: RouteState.FAILING in probed.states)
        assert took <= 1.0 + 2 * 2.0 + 0.2, "one period, and two probes of timeoutSeconds and one second"
        assert probed.states == [RouteState.FAILING, RouteState.ANSWERED], "failing routes come first"
        assert probed.state.readiness()[0]
        frontend.workers[2].behaviour = "error"
        await probed.until(lambda: not probed.state.readiness()[0])
        _, reason = probed.state.readiness()
        assert "None of 2 discovered workers has answered (2 Failing)" in reason
        frontend.workers[1].behaviour = "answer"
        assert await probed.until(lambda: probed.state.readiness()[0]) <= 2.2
        metrics = probed.prober.metrics.text().decode()
        assert 'vllmendpoint_routes{state="Failing"} 1.0' in metrics
        assert 'vllmendpoint_seconds_since_route_answer{instance_id="1"} 0' in metrics
        assert 'vllmendpoint_route_probes_total{outcome="failed"}' in metrics


@on_virtual_time
async def test_a_worker_that_the_router_does_not_know_is_not_accepted(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker(), 2: FakeWorker(behaviour="unknown", accepted=False)})
    async with probing(frontend, tmp_path) as probed:
        assert await probed.until(lambda: RouteState.NOT_ACCEPTED in probed.states) < 3.0
        assert probed.state.readiness()[0]
        (other,) = [route for route in probed.state.report().routes if route.instance_id == "2"]
        assert "400" in other.message


@on_virtual_time
async def test_the_mode_changes_without_a_restart(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker(behaviour="error")})
    async with probing(frontend, tmp_path, mode="Disabled") as probed:
        await probed.until(lambda: probed.state.readiness()[0])
        await asyncio.sleep(60.0)
        assert frontend.posts == []
        assert not probed.state.report().probing
        with pytest.raises(ProbeUnavailableError):
            await probed.prober.probe_all()
        probed.settings(mode="Enforce")
        await probed.until(lambda: probed.states == [RouteState.FAILING])
        assert not probed.state.readiness()[0]
        probed.settings(mode="Observe", periodSeconds=5)
        await probed.until(lambda: probed.state.readiness()[0])
        (tmp_path / names.SETTINGS_FILE).write_text("{")
        await asyncio.sleep(5.0)
        assert probed.state.readiness()[0], "invalid settings are ignored"
        (tmp_path / names.SETTINGS_FILE).unlink()
        await probed.until(lambda: not probed.state.readiness()[0])


@on_virtual_time
async def test_an_http_server_that_does_not_respond_ends_the_process(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker()})
    async with probing(frontend, tmp_path) as probed:
        await probed.until(lambda: probed.state.readiness()[0])
        frontend.up = False
        assert await probed.until(lambda: not probed.state.readiness()[0]) < 6.0
        assert not probed.state.report().answering
        assert "HTTP server does not respond" in probed.state.readiness()[1]
        frontend.up = True
        await probed.until(lambda: probed.state.readiness()[0])
        assert probed.unresponsive == []
        frontend.up = False
        assert 58.0 < await probed.until(lambda: probed.unresponsive) < 65.0


@on_virtual_time
async def test_a_slow_start_is_not_unresponsive(tmp_path: Path) -> None:
    frontend = FakeFrontend(up=False)
    async with probing(frontend, tmp_path) as probed:
        await asyncio.sleep(200.0)
        assert (probed.state.started, probed.unresponsive) == (False, []), "the startup probe has a limit"
        ready, reason = probed.state.readiness()
        assert not ready
        assert reason.startswith("The frontend is starting: ")


@on_virtual_time
async def test_all_routes_are_probed_on_request(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker(), 2: FakeWorker(behaviour="error")})
    async with probing(frontend, tmp_path, failureThreshold=1) as probed:
        await probed.until(lambda: probed.state.readiness()[0])
        frontend.workers[2].behaviour = "answer"
        outcome = await probed.prober.probe_all()
        assert outcome["ready"] is True
        assert [route["state"] for route in outcome["routes"]] == [RouteState.ANSWERED.value] * 2


@on_virtual_time
async def test_an_unexpected_error_ends_the_prober(tmp_path: Path) -> None:
    class Broken(FakeFrontend):
        async def post(self, *args: Any) -> HttpResponse:
            raise KeyError("unexpected")

    probed = Probed(Broken({1: FakeWorker()}), tmp_path)
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(probed.prober.run(), 10.0)


@on_virtual_time
async def test_no_probe_starts_during_the_drain(tmp_path: Path) -> None:
    frontend = FakeFrontend({1: FakeWorker()})
    async with probing(frontend, tmp_path, periodSeconds=1) as probed:
        await probed.until(lambda: probed.state.readiness()[0])
        probed.state.enter_stage(Stage.STOPPING)
        frontend.posts.clear()
        await asyncio.sleep(10.0)
        assert frontend.posts == []
        assert probed.state.stage is Stage.STOPPING
        assert probed.state.readiness() == (False, "The frontend is shutting down.")
