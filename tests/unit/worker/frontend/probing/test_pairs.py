"""Probes of prefill and decode workers, each through a worker of the other role, on virtual time."""

import asyncio
from pathlib import Path

import pytest

from tests.unit.worker.fake_frontend import FakeFrontend, FakeWorker
from tests.unit.worker.probed_routes import Probed, probing
from tests.unit.worker.virtual_time import on_virtual_time
from vllmendpoint_api import RouteState
from vllmendpoint_worker.frontend.discovery import Discovery, Instance, Scope, accepted_workers, instances
from vllmendpoint_worker.frontend.probing.routes import ProbeEnd, Route, RouteOutcome, partner

pytestmark = pytest.mark.timeout(30)

ANSWERED, FAILING = RouteState.ANSWERED, RouteState.FAILING
P1, P2 = Instance("ns", 1, prefill=True), Instance("ns", 2, prefill=True)
D1, D2 = Instance("ns", 11), Instance("ns", 12)
OTHER = Instance("other", 3, prefill=True)


def route(instance: Instance, state: RouteState = ANSWERED, failed: Instance | None = None) -> Route:
    """``failed``: the partner of its last probe, which failed."""
    end = None if failed is None else ProbeEnd(0.0, 1.0, RouteOutcome.FAILED, partner=failed)
    return Route(instance, discovered=0.0, since=0.0, state=state, last_probe=end)


@pytest.mark.parametrize(
    ("of", "routes", "expected"),
    [
        pytest.param(route(D1), [route(D1), route(D2)], None, id="no prefill worker"),
        pytest.param(route(D1), [route(D1), route(OTHER)], None, id="another namespace"),
        pytest.param(route(D1), [route(D1), route(P1)], P1, id="the only one"),
        pytest.param(route(P1), [route(P1), route(P2), route(D2)], D2, id="of a prefill worker"),
        pytest.param(route(D1), [route(P1, FAILING), route(P2)], P2, id="one that answers"),
        pytest.param(route(D1), [route(P1), route(P2)], P2, id="by the instance ID"),
        pytest.param(route(D2), [route(P1), route(P2)], P1, id="by another instance ID"),
        pytest.param(route(D1, failed=P2), [route(P1), route(P2)], P1, id="another one after a failure"),
        pytest.param(route(D1, failed=P2), [route(P1, FAILING), route(P2)], P1, id="also one that fails"),
        pytest.param(route(D1, failed=P1), [route(P1)], P1, id="the only one again"),
        pytest.param(route(D1, failed=P1), [route(P2, FAILING)], P2, id="the one that failed has left"),
    ],
)
def test_the_partner_of_a_probe(of: Route, routes: list[Route], expected: Instance | None) -> None:
    assert partner(of, routes) == expected


def pairs(prefill: int = 1, decode: int = 1) -> FakeFrontend:
    workers = {number: FakeWorker(prefill=True) for number in range(1, prefill + 1)}
    return FakeFrontend(workers | {number: FakeWorker() for number in range(11, decode + 11)})


def states(probed: Probed) -> dict[str, RouteState]:
    return {route.instance_id: RouteState(route.state) for route in probed.state.report().routes}


@on_virtual_time
async def test_every_worker_is_probed_through_one_of_the_other_role(tmp_path: Path) -> None:
    frontend = pairs(2, 2)
    async with probing(frontend, tmp_path, periodSeconds=1) as probed:
        await probed.until(lambda: list(states(probed).values()) == [ANSWERED] * 4)
        assert probed.state.readiness()[0]
        frontend.pairs.clear()
        await asyncio.sleep(5.0)
        assert {decode for decode, _ in frontend.pairs} == {11, 12}
        assert {prefill for _, prefill in frontend.pairs} == {1, 2}
        assert len(set(frontend.prompts)) == len(frontend.prompts), "a known prompt is not transferred"


@on_virtual_time
async def test_one_prefill_worker_that_hangs_fails_no_decode_worker(tmp_path: Path) -> None:
    frontend = pairs(2, 2)
    async with probing(frontend, tmp_path, periodSeconds=1, timeoutSeconds=1) as probed:
        await probed.until(lambda: list(states(probed).values()) == [ANSWERED] * 4)
        frontend.workers[1].behaviour = "hang"
        assert await probed.until(lambda: FAILING in states(probed).values()) <= 1.0 + 2 * 2.0 + 0.2
        for _ in range(100):
            assert states(probed) == {"1": FAILING, "2": ANSWERED, "11": ANSWERED, "12": ANSWERED}
            assert probed.state.readiness()[0]
            await asyncio.sleep(0.1)
        frontend.workers[1].behaviour = "answer"
        await probed.until(lambda: list(states(probed).values()) == [ANSWERED] * 4)


@on_virtual_time
async def test_a_broken_transfer_fails_both_routes_of_the_only_pair(tmp_path: Path) -> None:
    frontend = pairs()
    async with probing(frontend, tmp_path, periodSeconds=1, timeoutSeconds=1) as probed:
        await probed.until(lambda: states(probed) == {"1": ANSWERED, "11": ANSWERED})
        frontend.broken_pairs.add((11, 1))
        await probed.until(lambda: states(probed) == {"1": FAILING, "11": FAILING})
        assert not probed.state.readiness()[0]


@on_virtual_time
@pytest.mark.parametrize(("left", "lost", "role"), [("11", 1, "prefill"), ("1", 11, "decode")])
async def test_without_a_worker_of_the_other_role_a_worker_is_not_accepted(
    tmp_path: Path, left: str, lost: int, role: str
) -> None:
    frontend = pairs()
    async with probing(frontend, tmp_path, periodSeconds=1) as probed:
        await probed.until(lambda: states(probed) == {"1": ANSWERED, "11": ANSWERED})
        worker = frontend.workers.pop(lost)
        await probed.until(lambda: states(probed) == {left: RouteState.NOT_ACCEPTED})
        (only,) = probed.state.report().routes
        assert only.message == (
            f"The frontend sends no requests to the Dynamo namespace ns, because it has no {role} worker."
        )
        assert not probed.state.readiness()[0]
        frontend.pairs.clear()
        await asyncio.sleep(5.0)
        assert frontend.pairs == [], "a probe would not be answered"
        frontend.workers[lost + 1] = worker
        await probed.until(lambda: list(states(probed).values()) == [ANSWERED] * 2)


@on_virtual_time
async def test_an_incomplete_namespace_does_not_concern_the_others(tmp_path: Path) -> None:
    frontend = pairs()
    async with probing(frontend, tmp_path, periodSeconds=1) as probed:
        await probed.until(lambda: states(probed) == {"1": ANSWERED, "11": ANSWERED})
        frontend.workers[12] = FakeWorker("next")
        await probed.until(lambda: states(probed).get("12") is RouteState.NOT_ACCEPTED)
        assert states(probed) == {"1": ANSWERED, "11": ANSWERED, "12": RouteState.NOT_ACCEPTED}
        frontend.workers[2] = FakeWorker("next", prefill=True)
        await probed.until(lambda: list(states(probed).values()) == [ANSWERED] * 4)


def test_roles_and_their_accepted_workers_are_read_from_the_responses() -> None:
    rows = [
        {"namespace": "ns", "component": component, "endpoint": "generate", "instance_id": number}
        for number, component in ((1, "prefill"), (11, "backend"))
    ]
    found = instances({"instances": rows}, Scope())
    assert found == (P1, D1)
    ready = {"namespaces": {"ns": {"worker_types": {"prefill": {"workers": 2}, "decode": {"workers": 3}}}}}
    discovery = Discovery(found, ("m",), accepted_workers(ready))
    assert [discovery.accepted_like(instance) for instance in found] == [2, 3]
