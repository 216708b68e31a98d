"""API server and etcd are killed and restarted, while endpoints are created, changed and served."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.control_plane import control_plane
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_effects import writes
from tests.integration.operator_process import Operator
from tests.integration.polling import until
from tests.integration.simulated_node import SimulatedNode

NAMESPACE = "restarts"


class ControlPlane:
    """A separate control plane with one operator."""

    def __init__(self, api, process, folder):
        self.api = api
        self._process = process
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        self.operator = Operator(
            api.kubeconfig, NAMESPACE, folder / "operator.log", lease_seconds=60
        ).until_leading()
        self.endpoints = []

    def endpoint(self, **spec):
        self.endpoints.append(EndpointUnderTest(self.api, NAMESPACE, f"e-{len(self.endpoints)}"))
        return self.endpoints[-1].create(**spec)

    def kill(self, component):
        """Kill the component; the parent process restarts it."""
        (pid,) = [pid for pid, name in self._components() if name == component]
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in dict(self._components()), "it ends")

    def _components(self):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                _, fields = stat.read_text().partition(") ")[::2]
                parent = int(fields.split()[1])
                command = (stat.parent / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if parent == self._process.pid:
                yield int(stat.parent.name), Path(command.decode()).name

    def until_ready(self):
        ready = ("get", "--raw", "/readyz")
        until(lambda: self.api.kubectl(*ready, check=False) == "ok", "the API server is ready again", 60)
        self.api.close()  # its connections belong to the killed process


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plane")
    with control_plane(folder) as (api, process):
        made = ControlPlane(api, process, tmp_path_factory.mktemp("operator"))
        yield made
        made.operator.kill()
        for endpoint in made.endpoints:
            for worker in endpoint.started:
                worker.close_streams()


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
@pytest.mark.parametrize("moment", ["at rest", "during a creation"])
def test_endpoints_converge_after_a_restart_of_the_api_server_or_etcd(plane, component, moment):
    scaled, deleted = plane.endpoint(), plane.endpoint()
    for endpoint in (scaled, deleted):
        SimulatedNode(endpoint).run()
    offset = plane.api.audit_offset()
    if moment == "at rest":
        plane.kill(component)
        plane.until_ready()
        created = plane.endpoint()
    else:
        created = plane.endpoint()
        until(lambda: plane.api.writes(offset, namespace=NAMESPACE), "its creation has begun")
        plane.kill(component)
        plane.until_ready()
    scaled.patch(spec={"replicas": 2})
    plane.api.delete("VLLMEndpoint", NAMESPACE, deleted.name)
    SimulatedNode(created).run(seconds=60)
    until(lambda: len(scaled.pods()) == 2, "it is scaled", 60)
    until(lambda: not deleted.pods() and not deleted.child("Service"), "its children are deleted", 60)
    assert plane.operator.process.poll() is None, plane.operator.text()
    assert "a defect of the operator" not in plane.operator.text()
    applied = {
        what: count
        for what, count in writes(plane.api, offset, NAMESPACE).items()
        if what.split()[1] not in ("vllmendpoints", "events", "pods") and created.name in what
    }
    assert len(applied) == len(created.owned())
    # A write whose response was lost is repeated if the watch that would report it is not restored yet.
    assert sum(applied.values()) <= len(applied) + 1, applied
    assert scaled.condition("Accepted")["status"] == "True"
    offset = plane.api.audit_offset()
    time.sleep(2)
    at_rest = writes(plane.api, offset, NAMESPACE)
    assert [what for what in at_rest if scaled.name not in what] == []
