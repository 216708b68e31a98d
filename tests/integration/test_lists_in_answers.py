"""An API server that gives no lists by a watch, as before Kubernetes 1.34 (its feature gate is off there)."""

import shutil
import stat
from pathlib import Path

import pytest

from tests.integration.api_server import BIN
from tests.integration.conftest import control_plane
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_process import Operator
from tests.integration.polling import until

NAMESPACE = "plain"
SERVER = f"""#!/bin/sh
exec {BIN}/kube-apiserver "$@" --feature-gates=WatchList=false
"""


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """The same, with that gate off."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for file in BIN.iterdir():
        if file.name not in ("cluster", "kube-apiserver"):
            (folder / file.name).symlink_to(file)
    shutil.copy(BIN / "cluster", folder)  # it takes the others from where it is itself
    server = folder / "kube-apiserver"
    server.write_text(SERVER)
    server.chmod(server.stat().st_mode | stat.S_IEXEC)
    return folder


def test_lists_come_in_answers_then(binaries: Path, tmp_path: Path) -> None:
    with control_plane(tmp_path / "cluster", binaries) as (api, _):
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        endpoint = EndpointUnderTest(api, NAMESPACE, "e")
        first = Operator(api.operators, NAMESPACE, tmp_path / "first.log")
        second = None
        try:
            first.leads()
            endpoint.create()
            endpoint.start_all()
            endpoint.until("Ready", "True")
            assert first.stop() == 0
            mark = api.audit_offset()
            second = Operator(api.operators, NAMESPACE, tmp_path / "second.log").leads()
            endpoint.patch(spec={"replicas": 2})
            until(lambda: len(endpoint.pods()) == 2, "it is at work")
            asked = api.operator_requests(mark)
            refused = [e["requestURI"] for e in asked if e.get("responseStatus", {}).get("code") == 422]
            assert refused, "this server does not stream lists"
            assert all("sendInitialEvents" in uri for uri in refused)
            listed = {e["objectRef"]["resource"] for e in asked if e["verb"] == "list"}
            assert {"pods", "deployments", "replicasets", "configmaps"} <= listed
            made = {
                e["objectRef"]["resource"]
                for e in api.requests(mark, namespace=NAMESPACE)
                if e.get("responseStatus", {}).get("code") == 201
            }
            assert made <= {"events", "poddisruptionbudgets"}, "what was listed is known"
        finally:
            for worker in endpoint.started:
                worker.close_streams()
            for operator in (first, second):
                if operator is not None:
                    operator.kill()
