"""KV events between real processes are cut off by a packet filter, as by a NetworkPolicy, and arrive again.

The times until the report of the frontend shows it are printed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network_namespace import Namespace, network_namespace
from vllmendpoint_api import FrontendReport, KVEventsState, RoutingMode, RoutingSpec
from vllmendpoint_operator.plan.pods.routing import router_env

from .frontend_process import PREFIX, FrontendProcess, PlainWorker

pytestmark = pytest.mark.timeout(400)
HEALTH_CHECK = {"periodSeconds": 5, "timeoutSeconds": 5}
DROP = """
table inet cut {{
  chain input {{
    type filter hook input priority 0
    tcp dport {port} drop
    tcp sport {port} drop
  }}
}}
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with network_namespace() as found:
        yield found


class Frontend(FrontendProcess):
    """In a network namespace, in which only other processes reach its ports."""

    def __init__(self, namespace: Namespace, folder: Path, **environ: str) -> None:
        super().__init__(folder, HEALTH_CHECK, **environ)
        self.namespace, self.inside = namespace, namespace.inside

    def get(self, path: str, *, method: str = "GET") -> tuple[int, bytes]:
        assert method == "GET"
        status, body = self.namespace.request("127.0.0.1", self.report_port, path)
        if not status:
            raise OSError(body)
        return status, body.encode()

    def request(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        assert not headers
        return self.namespace.request("127.0.0.1", self.port, path, body)


def states(report: FrontendReport) -> dict[str, KVEventsState]:
    return {
        route.instance_id: KVEventsState(route.kv_events.state)
        for route in report.routes
        if route.kv_events is not None
    }


def event_port(worker: PlainWorker) -> str:
    """Port of the socket at which Dynamo in the worker publishes KV events."""
    found = re.findall(r"ZMQ PUB transport bound .*endpoint=tcp://\S+:(\d+) topic=kv[-_]events", worker.log())
    assert found, worker.log()[-3000:]
    return str(found[-1])


def test_events_that_a_packet_filter_drops_are_missing_until_it_is_removed(
    tmp_path: Path, toy_model: Path, namespace: Namespace
) -> None:
    workers = [
        PlainWorker(tmp_path, name, toy_model, f"{PREFIX}r1", PLAIN_KV_EVENTS="publish")
        for name in ("a", "b")
    ]
    frontend = Frontend(namespace, tmp_path, **router_env(RoutingSpec(mode=RoutingMode.KV)))
    try:
        for process in (*workers, frontend):
            process.inside = namespace.inside
            process.start()
        frontend.until(lambda report: list(states(report).values()) == [KVEventsState.RECEIVED] * 2, 90.0)
        cut, other = workers
        namespace.run("nft", "-f", "-", text=DROP.format(port=event_port(cut)))
        seconds = frontend.until(
            lambda report: states(report).get(cut.instance_id) is KVEventsState.MISSING, 120.0
        )
        report = frontend.report()
        (route,) = [route for route in report.routes if route.instance_id == cut.instance_id]
        assert route.kv_events is not None
        print(f"\nevents cut off: Missing after {seconds:.1f} s: {route.kv_events.message}")
        assert "Check the NetworkPolicies between the pods" in route.kv_events.message
        assert states(report)[other.instance_id] is KVEventsState.RECEIVED
        assert report.ready
        for _ in range(4):
            assert frontend.complete(model="plain", max_tokens=2)[0] == 200
        namespace.run("nft", "delete", "table", "inet", "cut")
        seconds = frontend.until(
            lambda report: states(report).get(cut.instance_id) is KVEventsState.RECEIVED, 240.0
        )
        print(f"filter removed: Received after {seconds:.1f} s")
    finally:
        for process in (*workers, frontend):
            process.stop()
