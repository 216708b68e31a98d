"""An operator that reaches the API server through a proxy that injects faults."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.free_port import free_port
from tests.integration.api_server import Api, AuditOffset
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.fault_proxy import FaultProxy
from tests.integration.http_get import metrics_text
from tests.integration.operator_effects import writes
from tests.integration.operator_process import Operator

NAMESPACE: Final = "faults"
CHILDREN: Final = rf"/namespaces/{NAMESPACE}/(?!vllmendpoints|leases|events|pods)\w+/"
"""Paths of single children: server-side applies, and the reads before the first apply."""
WATCHES: Final = r"[?&]watch=true"


class ProxiedOperator:
    def __init__(self, api: Api, fault_proxy: FaultProxy, operator: Operator, metrics_port: int) -> None:
        self.api, self.fault_proxy, self.operator = api, fault_proxy, operator
        self._metrics_port = metrics_port

    def metrics(self) -> str:
        return metrics_text(self._metrics_port)

    def applied(self, endpoint: EndpointUnderTest, offset: AuditOffset) -> dict[str, int]:
        """Count the successful writes of each child of the endpoint since the offset."""
        names = re.compile(rf"{endpoint.name}(-.*)?")
        found = {}
        for what, count in writes(self.api, offset, NAMESPACE).items():
            _, resource, name = what.split(" ")
            if resource not in ("vllmendpoints", "events") and names.fullmatch(name):
                found[what] = count
        return found

    def check(self) -> None:
        """Assert that the operator still runs and logged no defect."""
        assert self.operator.process.poll() is None, self.operator.text()
        assert "a defect of the operator" not in self.operator.text(), self.operator.text()


@contextmanager
def proxied_operator(api: Api, folder: Path, **flags: Any) -> Iterator[ProxiedOperator]:
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    fault_proxy = FaultProxy(api, folder)
    port = free_port()
    operator = Operator(
        fault_proxy.kubeconfig,
        NAMESPACE,
        folder / "operator.log",
        **{"metrics_port": port, "lease_seconds": 15, **flags},
    )
    try:
        yield ProxiedOperator(api, fault_proxy, operator.until_leading(), port)
    finally:
        operator.kill()
        fault_proxy.close()
