"""KV-aware routing on real pods: requests go where their prefix is cached, and lost KV events are reported.

The seconds from a fault to its reason are printed.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
import yaml

from .conftest import ROOT, Cluster, eventually, manifest, post

NAME: Final = "kv"
SESSION: Final = "x-dynamo-session-id"
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster) -> None:
    """The sample, with the toy model and two frontends."""
    sample = yaml.safe_load((ROOT / "samples/kv-routing.yaml").read_text())["spec"]
    frontend = {**sample["frontend"], "replicas": 2}
    cluster.apply(manifest(NAME, replicas=sample["replicas"], frontend=frontend))
    cluster.wait_ready(NAME)


@pytest.fixture
def urls(cluster: Cluster, endpoint: None) -> Iterator[list[str]]:
    """The address of each frontend pod."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(cluster.forward(f"pod/{pod['metadata']['name']}", 8000))
            for pod in cluster.workers(NAME, "frontend")
        ]


def serving(cluster: Cluster) -> dict[str, Any]:
    return cluster.condition(NAME, "Serving")


def wait_for_reason(cluster: Cluster, reason: str, seconds: float) -> tuple[float, str]:
    """Seconds until ``Serving`` has the reason, and its message. It must be True all the time."""
    begun = time.monotonic()

    def found() -> dict[str, Any]:
        condition = serving(cluster)
        assert condition["status"] == "True", condition
        return condition

    condition = eventually(found, lambda entry: entry["reason"] == reason, seconds)
    return time.monotonic() - begun, condition["message"]


def worker_of(url: str, prompt: str, **headers: str) -> str:
    body = {"model": NAME, "prompt": prompt, "max_tokens": 1, "nvext": {"extra_fields": ["worker_id"]}}
    status, answer = post(f"{url}/v1/completions", body, **headers)
    assert status == 200, answer
    return str(json.loads(answer)["nvext"]["worker_id"]["decode_worker_id"])


def prefixes() -> list[str]:
    """Longer than two KV blocks of an engine on CPU, which have 128 tokens."""
    return [f"text {number} " + "a b c d e f g h i j " * 30 for number in range(6)]


def test_healthy_events_are_not_reported_as_missing(cluster: Cluster, endpoint: None) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert serving(cluster)["reason"] == "Serving", serving(cluster)
        time.sleep(2)
    assert cluster.condition(NAME, "Ready")["status"] == "True"


def test_a_prefix_stays_where_it_is_cached_through_every_frontend_and_after_its_restart(
    cluster: Cluster, urls: list[str]
) -> None:
    homes = [worker_of(urls[0], prefix + "one") for prefix in prefixes()]
    assert len(set(homes)) == 2, "new prefixes spread over the workers"
    time.sleep(1)
    for number, url in enumerate(urls):
        assert [worker_of(url, prefix + f"two {number}") for prefix in prefixes()] == homes
    gone = cluster.workers(NAME, "frontend")[0]["metadata"]["name"]
    cluster.kubectl("delete", "pod", gone, timeout=180)
    (new,) = eventually(
        lambda: [
            pod["metadata"]["name"]
            for pod in cluster.workers(NAME, "frontend")
            if pod["metadata"]["name"] != gone
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
        ],
        lambda found: len(found) == 2,
        120,
    )[-1:]
    with cluster.forward(f"pod/{new}", 8000) as url:
        assert [worker_of(url, prefix + "three") for prefix in prefixes()] == homes


def test_a_session_stays_on_one_worker_through_every_frontend(cluster: Cluster, urls: list[str]) -> None:
    for session in ("a", "b", "c", "d"):
        first = worker_of(urls[0], f"{session} begins", **{SESSION: session})
        later = Counter(worker_of(url, f"{session} continued", **{SESSION: session}) for url in urls * 2)
        assert later == {first: 4}


def test_lost_events_are_reported_with_worker_and_frontend_and_requests_are_answered(
    cluster: Cluster, endpoint: None
) -> None:
    """The frontends may open no connection to a port above 9092, which are those of Dynamo's events."""
    labels = {"app.kubernetes.io/instance": NAME, "app.kubernetes.io/component": "frontend"}
    ports = [{"protocol": protocol, "port": 1, "endPort": 9092} for protocol in ("TCP", "UDP")]
    cluster.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "no-events"},
            "spec": {
                "podSelector": {"matchLabels": labels},
                "policyTypes": ["Egress"],
                "egress": [{"ports": ports}],
            },
        }
    )
    try:
        seconds, message = wait_for_reason(cluster, "KVEventsMissing", 300)
        print(f"\nevents cut off: KVEventsMissing after {seconds:.1f} s: {message}")
        names = {
            component: [pod["metadata"]["name"] for pod in cluster.workers(NAME, component)]
            for component in ("worker", "frontend")
        }
        assert any(f"(pod {name}" in message for name in names["worker"])
        assert any(f"frontend pod {name} selects" in message for name in names["frontend"])
        assert "Check the NetworkPolicies between the pods" in message
        assert cluster.condition(NAME, "Ready")["message"].endswith(message)
        with cluster.forward(f"service/{NAME}", 8000) as url:
            for prefix in prefixes():
                worker_of(url, prefix)
    finally:
        cluster.kubectl("delete", "networkpolicy", "no-events")
    seconds, _ = wait_for_reason(cluster, "Serving", 300)
    print(f"policy removed: Serving after {seconds:.1f} s")
