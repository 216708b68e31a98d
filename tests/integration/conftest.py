"""Fixtures: a real API server with its controllers, the operator as a process, simulated pods and workers.

No pod runs: a test patches ``pods/status`` and serves worker reports on a loopback address.
"""

import contextlib
import itertools
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_server import BIN, ROOT, START, Api
from tests.integration.chart_account import install_account
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_process import Operator
from tests.integration.polling import until


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with control_plane(tmp_path_factory.mktemp("controlplane")) as (running, _):
        yield running
        asked = [
            entry
            for entry in running.operator_requests(START)
            if entry.get("objectRef", {}).get("resource") == "secrets"
        ]
        assert asked == [], "no operator may read a Secret"


@contextlib.contextmanager
def control_plane(folder: Path, binaries: Path = BIN) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """Start an API server with the VLLMEndpoint CRD; yields it and the process that runs its components."""
    if not (BIN / "cluster").exists():
        pytest.skip(f"no control plane in {BIN}: `hack/cluster/build.sh` builds it")
    with (folder.parent / "controlplane.err").open("wb") as errors:
        process = subprocess.Popen(
            [binaries / "cluster", "controlplane", "--dir", folder], stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 120)
            assert readable, "the control plane was not ready within 120 s"
            assert process.stdout.readline().startswith(b"ready ")
            running = Api(folder)
            running.kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "vllmendpoints.yaml"))
            # Not `kubectl wait`: it fails for a CRD without conditions.
            known = ("get", "vllmendpoints", "-A")
            until(
                lambda: "No resources found" in running.kubectl(*known, check=False), "the CRD is served", 60
            )
            account = folder / "operators.json"
            running.operators = install_account(running.kubectl, BIN / "helm", account)
            yield running, process
            running.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def operate(api: Api, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """``operate(namespace, flag=value)`` starts an operator. It ends with the test and must log no defect."""
    started: list[Operator] = []

    def start(namespace: str, **flags: Any) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        where = flags.pop("kubeconfig", api.operators)
        started.append(Operator(where, namespace, log, **flags))
        return started[-1]

    yield start
    for operator in started:
        operator.kill()
        assert "a defect of the operator" not in operator.text(), operator.text()


_numbers = itertools.count(1)


@pytest.fixture
def namespace(api: Api) -> str:
    name = f"ns-{next(_numbers)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture(scope="session")
def shared(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One operator in the namespace ``shared`` for all tests that need no operator of their own."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "shared"}})
    operator = Operator(api.operators, "shared", tmp_path_factory.mktemp("shared") / "operator.log")
    try:
        yield operator.leads()
        assert operator.stop() == 0, operator.text()
        assert "a defect of the operator" not in operator.text(), operator.text()
    finally:
        operator.kill()


@pytest.fixture(scope="module")
def make_endpoints(api: Api) -> Iterator[Callable[..., EndpointUnderTest]]:
    """``make_endpoints(namespace)`` returns a new endpoint that is deleted at the end of the module."""
    yield from _tested_endpoints(api)


@pytest.fixture
def make_endpoint(api: Api) -> Iterator[Callable[..., EndpointUnderTest]]:
    """As ``make_endpoints``, for one test."""
    yield from _tested_endpoints(api)


def _tested_endpoints(api: Api) -> Iterator[Callable[..., EndpointUnderTest]]:
    made: list[EndpointUnderTest] = []

    def make(namespace: str = "shared", name: str = "") -> EndpointUnderTest:
        made.append(EndpointUnderTest(api, namespace, name or f"e-{next(_numbers)}"))
        return made[-1]

    yield make
    for item in made:
        with contextlib.suppress(LookupError):
            api.delete("VLLMEndpoint", item.namespace, item.name)
        for worker in item.started:
            if not worker.ended:
                worker.close_streams()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that need the garbage collector last: it discovers a new CRD within 30 s. The chart's tests
    have their own control planes, so any free process can run them.
    """
    last = ("test_crash.py", "test_deletion.py")
    items.sort(key=lambda item: item.path.name in last or item.path.parent.name == "chart")


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., Any]:
    return until
