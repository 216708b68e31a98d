"""Fixtures: a real API server with its controllers, the operator as a process, simulated pods and workers.

No pod runs: a test patches ``pods/status`` and serves worker reports on a loopback address.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_server import START, Api
from tests.integration.control_plane import control_plane
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_process import Operator
from tests.integration.polling import until


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with control_plane(tmp_path_factory.mktemp("controlplane")) as (running, _):
        yield running
        requests = [
            entry
            for entry in running.operator_requests(START)
            if entry.get("objectRef", {}).get("resource") == "secrets"
        ]
        assert requests == [], "no operator may read a Secret"


@pytest.fixture
def operate(api: Api, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """``operate(namespace, flag=value)`` starts an operator. It ends with the test and must log no defect."""
    started: list[Operator] = []

    def start(namespace: str, **flags: Any) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        kubeconfig = flags.pop("kubeconfig", api.operators)
        started.append(Operator(kubeconfig, namespace, log, **flags))
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
    """One operator in the namespace ``shared`` for all tests that need no separate operator."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "shared"}})
    operator = Operator(api.operators, "shared", tmp_path_factory.mktemp("shared") / "operator.log")
    try:
        yield operator.until_leading()
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
    endpoints: list[EndpointUnderTest] = []

    def make(namespace: str = "shared", name: str = "") -> EndpointUnderTest:
        endpoints.append(EndpointUnderTest(api, namespace, name or f"e-{next(_numbers)}"))
        return endpoints[-1]

    yield make
    for endpoint in endpoints:
        with contextlib.suppress(LookupError):
            api.delete("VLLMEndpoint", endpoint.namespace, endpoint.name)
        for worker in endpoint.started:
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
