"""A worker and a frontend in a pod that has IPv6, as the operator renders them: every port answers, and a
request goes from one to the other.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.free_port import free_port
from tests.network_namespace import POD, Namespace, network_namespace
from tests.worker.conftest import START_SECONDS, WorkerProcess

IPV4_OF_THE_NODE = "169.254.172.5"
"""Amazon EKS gives such an address to pods of IPv6 clusters: other nodes cannot reach it."""
UNSET = dict.fromkeys(
    (
        *("DYN_EVENT_PLANE_HOST", "DYN_HTTP_RPC_HOST", "DYN_SYSTEM_HOST"),
        *("DYN_TCP_RESPONSE_STREAM_HOST", "DYN_TCP_RPC_HOST"),
        *("VLLMENDPOINT_REPORT_HOST", "VLLMENDPOINT_SAGEMAKER_HOST"),
    ),
    "",
)


class Pods(NamedTuple):
    namespace: Namespace
    worker: WorkerProcess
    frontend_port: int


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def pods(make_worker: Callable[..., WorkerProcess]) -> Iterator[Pods]:
    port = free_port()
    with network_namespace(f"{IPV4_OF_THE_NODE}/22", f"{POD}/64") as namespace:
        environ = UNSET | {"POD_IP": POD, "VLLM_HOST_IP": POD}
        worker = make_worker(environ, inside=namespace.inside)
        worker.settings({})
        worker.start()
        own = {name: value for name, value in worker.environ.items() if name not in UNSET}
        own |= {"DYN_SYSTEM_PORT": "-1", "DYN_TCP_RESPONSE_STREAM_PORT": str(free_port())}
        own |= {"VLLMENDPOINT_REPORT_PORT": str(free_port())}
        del own["DYN_TCP_RPC_PORT"]
        with (worker.folder / "frontend.log").open("wb") as log:
            frontend = subprocess.Popen(
                [
                    *namespace.inside,
                    *(sys.executable, "-m", "vllmendpoint_worker.frontend", "--http-port", str(port)),
                ],
                env=own, stdout=log, stderr=log, cwd=worker.folder,
            )  # fmt: skip
        try:
            until(
                lambda: namespace.request("::1", worker.ports["report"], "/ready")[0] == 200,
                START_SECONDS,
                worker.log_lines,
            )
            yield Pods(namespace, worker, port)
        finally:
            frontend.kill()
            frontend.wait(20)
            worker.stop()


@pytest.mark.parametrize("address", ["::1", POD, "127.0.0.1"])
def test_every_http_port_answers(pods: Pods, address: str) -> None:
    ports = pods.worker.ports
    for port, path in (
        (ports["report"], "/status"),
        (ports["http"], "/ping"),
        (ports["system"], "/metrics"),
        (pods.frontend_port, "/health"),
    ):
        assert pods.namespace.request(address, port, path)[0] == 200, (port, path)


def test_dynamo_publishes_the_pods_own_address(pods: Pods) -> None:
    published = "".join(
        path.read_text() for path in (pods.worker.folder / "discovery").rglob("*") if path.is_file()
    )
    addresses = set(re.findall(r"\[?([0-9a-f:.]+)\]?:[0-9]+/", published))
    assert addresses == {POD}, published
    assert IPV4_OF_THE_NODE not in published


def test_the_frontend_answers_through_the_worker(pods: Pods) -> None:
    body = {"model": "toy", "prompt": "Hello", "max_tokens": 4}
    found: list[tuple[int, str]] = []

    def answered() -> bool:
        found.append(pods.namespace.request(POD, pods.frontend_port, "/v1/completions", body))
        return found[-1][0] == 200

    until(answered, 60.0, lambda: found[-1])
    assert json.loads(found[-1][1])["usage"]["completion_tokens"] == 4
