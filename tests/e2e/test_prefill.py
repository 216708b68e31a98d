"""Separate prefill and decode workers on real pods: a request, and each fault between the two roles.

The time from a fault to its condition is printed.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from .conftest import CHAT, Cluster, chat, eventually, manifest

NAME: Final = "split"
PERIOD: Final = 5
pytestmark = pytest.mark.timeout(900)

METRICS: Final = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9090/metrics", timeout=10).read().decode())
"""


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster) -> None:
    cluster.apply(
        manifest(
            NAME,
            uri=CHAT,
            prefill={"replicas": 1},
            healthCheck={"periodSeconds": PERIOD, "timeoutSeconds": 5},
        )
    )
    cluster.wait_ready(NAME)


def pod(cluster: Cluster, component: str) -> str:
    (found,) = [
        pod["metadata"]["name"]
        for pod in cluster.workers(NAME, component)
        if "deletionTimestamp" not in pod["metadata"]
    ]
    return str(found)


def metric(cluster: Cluster, pod: str, pattern: str) -> float:
    """Sum of the lines of vLLM's metrics that match."""
    lines = cluster.python(pod, METRICS).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line))


def transferred(cluster: Cluster) -> float:
    """Tokens that the decode worker did not compute, because it got their KV cache."""
    return metric(
        cluster,
        pod(cluster, "worker"),
        r'vllm:prompt_tokens_by_source_total\{.*source="external_kv_transfer"',
    )


def answered(cluster: Cluster, seconds: float = 60) -> tuple[int, str]:
    with cluster.forward(f"service/{NAME}", 8000) as base:
        return chat(base, NAME, seconds=seconds)


def reported(cluster: Cluster, label: str, kind: str, *reasons: str, within: float) -> str:
    begun = time.monotonic()
    found = eventually(
        lambda: cluster.condition(NAME, kind),
        lambda c: c["status"] != "True" and c["reason"] in reasons,
        within + 60,
    )
    seconds = time.monotonic() - begun
    print(f"\n{label}: {kind} {found['reason']} after {seconds:.1f} s: {found['message']}")
    assert seconds <= within, found
    return str(found["message"])


@contextmanager
def stopped_engine(cluster: Cluster, component: str) -> Iterator[str]:
    name = pod(cluster, component)
    cluster.signal_engine(name, "SIGSTOP")
    try:
        yield name
    finally:
        cluster.signal_engine(name, "SIGCONT")
    cluster.wait_ready(NAME, 120)


def test_one_worker_computes_the_prompt_and_another_one_decodes(cluster: Cluster, endpoint: None) -> None:
    before = transferred(cluster)
    generated = metric(cluster, pod(cluster, "worker"), "vllm:generation_tokens_total")
    status, text = answered(cluster)
    assert status == 200, text
    assert "Paris" in text
    assert transferred(cluster) - before > 20, "the tokens of the prompt"
    assert metric(cluster, pod(cluster, "worker"), "vllm:generation_tokens_total") - generated >= 4


def test_the_status_shows_both_roles(cluster: Cluster, endpoint: None) -> None:
    status = cluster.endpoint(NAME)["status"]
    roles = {worker["name"]: worker["role"] for worker in status["workers"]}
    assert roles == {pod(cluster, "worker"): "Decode", pod(cluster, "prefill"): "Prefill"}
    prefill = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "generatingReplicas": 1}
    assert status["prefill"] == prefill
    assert (status["replicas"], status["readyReplicas"], status["generatingReplicas"]) == (1, 1, 1)
    message = cluster.condition(NAME, "Generating")["message"]
    assert message.startswith("1 of 1 started replica and 1 of 1 started prefill replica are generating")


def test_a_frozen_prefill_engine_is_named_and_the_decode_worker_answers(
    cluster: Cluster, endpoint: None
) -> None:
    with stopped_engine(cluster, "prefill") as name:
        message = reported(cluster, "prefill engine stopped", "Generating", "EngineStalled", within=20)
        assert name in message
        assert "1 of 1 prefill replica" in message
        eventually(lambda: answered(cluster, 10)[0], lambda code: code == 200, 30)
        serving = cluster.condition(NAME, "Serving")
        assert serving["status"] == "True", serving


def test_a_frozen_decode_engine_is_named(cluster: Cluster, endpoint: None) -> None:
    with stopped_engine(cluster, "worker") as name:
        message = reported(cluster, "decode engine stopped", "Generating", "EngineStalled", within=20)
        assert name in message
        reported(cluster, "decode engine stopped", "Serving", "NoRoute", within=20)


def test_a_blocked_path_between_the_roles_is_a_failed_transfer(cluster: Cluster, endpoint: None) -> None:
    (prefill,) = cluster.workers(NAME, "prefill")
    address = f"{prefill['status']['podIP']}/32"
    cluster.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "cut-off"},
            "spec": {
                "podSelector": {
                    "matchLabels": {
                        "app.kubernetes.io/instance": NAME,
                        "app.kubernetes.io/component": "worker",
                    }
                },
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [address]}}]}],
            },
        }
    )
    try:
        message = reported(
            cluster, "path between the roles blocked", "Generating", "TransferFailed", within=45
        )
        assert prefill["metadata"]["name"] in message or pod(cluster, "worker") in message
        assert "NetworkPolicies" in message
    finally:
        cluster.kubectl("delete", "networkpolicy", "cut-off")
    cluster.wait_ready(NAME, 180)
    assert answered(cluster)[0] == 200


def test_without_a_prefill_worker_the_decode_worker_answers(cluster: Cluster, endpoint: None) -> None:
    name = pod(cluster, "prefill")
    cluster.kubectl("delete", "pod", name, "--wait=false")
    reported(cluster, "prefill pod deleted", "Generating", "NoWorkers", "WorkerUnreachable", within=60)
    assert answered(cluster)[0] == 200
    cluster.wait_ready(NAME, 300)
    before = transferred(cluster)
    assert answered(cluster)[0] == 200
    assert transferred(cluster) > before
