"""An operator that reaches the API server through a door that the test can jam."""

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.free_port import free_port
from tests.integration.conftest import Api, Mark, Space
from tests.integration.faulty_api import FaultyApi
from tests.integration.operator_process import Operator
from tests.integration.traces import writes

NAMESPACE: Final = "faults"
CHILDREN: Final = rf"/namespaces/{NAMESPACE}/(?!vllmendpoints|leases|events|pods)\w+/"
"""Paths of single children, that is: of applies, and of the looks before the first."""
WATCHES: Final = r"[?&]watch=true"


class BehindFaults:
    def __init__(self, api: Api, door: FaultyApi, operator: Operator, metrics_port: int) -> None:
        self.api, self.door, self.operator = api, door, operator
        self._metrics_port = metrics_port

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def applied(self, endpoint: Space, mark: Mark) -> dict[str, int]:
        """How often each child of the endpoint was written since then, with success."""
        mine = re.compile(rf"{endpoint.name}(-.*)?")
        found = {}
        for what, count in writes(self.api, mark, NAMESPACE).items():
            _, resource, name = what.split(" ")
            if resource not in ("vllmendpoints", "events") and mine.fullmatch(name):
                found[what] = count
        return found

    def check(self) -> None:
        """No fault is a reason to end, or a defect."""
        assert self.operator.process.poll() is None, self.operator.text()
        assert "a defect of the operator" not in self.operator.text(), self.operator.text()


@contextmanager
def behind_faults(api: Api, folder: Path, **flags: Any) -> Iterator[BehindFaults]:
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    door = FaultyApi(api, folder)
    port = free_port()
    operator = Operator(
        door.kubeconfig,
        NAMESPACE,
        folder / "operator.log",
        **{"metrics_port": port, "lease_seconds": 15, **flags},
    )
    try:
        yield BehindFaults(api, door, operator.leads(), port)
    finally:
        operator.kill()
        door.close()
