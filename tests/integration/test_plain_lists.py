"""An API server without WatchList, as before Kubernetes 1.34, where its feature gate is off by default."""

import shutil
import stat
from pathlib import Path

import pytest

from tests.integration.control_plane import control_plane
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_process import Operator
from tests.integration.polling import until
from tests.project_cache import BIN

NAMESPACE = "plain"
SERVER = f"""#!/bin/sh
exec {BIN}/kube-apiserver "$@" --feature-gates=WatchList=false
"""


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """The same programs, with the feature gate off."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for file in BIN.iterdir():
        if file.name not in ("cluster", "kube-apiserver"):
            (folder / file.name).symlink_to(file)
    shutil.copy(BIN / "cluster", folder)  # it runs the other programs from its own folder
    server = folder / "kube-apiserver"
    server.write_text(SERVER)
    server.chmod(server.stat().st_mode | stat.S_IEXEC)
    return folder


def test_the_operator_uses_plain_lists_without_watch_list(binaries: Path, tmp_path: Path) -> None:
    with control_plane(tmp_path / "cluster", binaries) as (api, _):
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        endpoint = EndpointUnderTest(api, NAMESPACE, "e")
        first = Operator(api.operators, NAMESPACE, tmp_path / "first.log")
        second = None
        try:
            first.until_leading()
            endpoint.create()
            endpoint.start_all()
            endpoint.until("Ready", "True")
            assert first.stop() == 0
            offset = api.audit_offset()
            second = Operator(api.operators, NAMESPACE, tmp_path / "second.log").until_leading()
            endpoint.patch(spec={"replicas": 2})
            until(lambda: len(endpoint.pods()) == 2, "the second operator scales it")
            requests = api.operator_requests(offset)
            rejected = [e["requestURI"] for e in requests if e.get("responseStatus", {}).get("code") == 422]
            assert rejected, "this server does not stream lists"
            assert all("sendInitialEvents" in uri for uri in rejected)
            listed = {e["objectRef"]["resource"] for e in requests if e["verb"] == "list"}
            assert {"pods", "deployments", "replicasets", "configmaps"} <= listed
            created = {
                e["objectRef"]["resource"]
                for e in api.requests(offset, namespace=NAMESPACE)
                if e.get("responseStatus", {}).get("code") == 201
            }
            assert created <= {"events", "poddisruptionbudgets"}, "the operator uses the listed objects"
        finally:
            for worker in endpoint.started:
                worker.close_streams()
            for operator in (first, second):
                if operator is not None:
                    operator.kill()
