"""Two endpoints in one namespace, one model name: neither ever answers for the other."""

import json

import pytest

from .conftest import TOY, Cluster, chat, eventually, manifest

pytestmark = pytest.mark.timeout(900)


def test_each_answers_for_itself_alone(cluster: Cluster) -> None:
    for name in ("one", "two"):
        cluster.apply(manifest(name, model={"uri": TOY, "name": "shared"}))
    for name in ("one", "two"):
        cluster.wait_ready(name)
    with cluster.forward("service/one", 8000) as one, cluster.forward("service/two", 8000) as two:
        for base in (one, two):
            eventually(lambda base=base: chat(base, "shared", "Hi")[0], lambda code: code == 200, 30)
        (pod,) = cluster.workers("one")
        cluster.signal_engine(pod["metadata"]["name"], "SIGSTOP")
        try:
            eventually(lambda: chat(one, "shared", "Hi", 3)[0], lambda code: code in (404, 503), 60)
            for _ in range(20):
                status, body = chat(two, "shared", "Hi")
                assert status == 200, body
                status, body = chat(one, "shared", "Hi", 3)
                assert status in (404, 503), body
            assert cluster.condition("two", "Ready")["status"] == "True"
        finally:
            cluster.signal_engine(pod["metadata"]["name"], "SIGCONT")
        eventually(lambda: chat(one, "shared", "Hi")[0], lambda code: code == 200, 60)

    # Without workers the other's must not step in.
    cluster.kubectl("patch", "vep", "one", "--type=merge", "-p", json.dumps({"spec": {"replicas": 0}}))
    eventually(lambda: cluster.workers("one"), lambda pods: not pods, 120)
    eventually(
        lambda: cluster.condition("one", "Ready"),
        lambda c: (c["status"], c["reason"]) == ("True", "ScaledToZero"),
        30,
    )
    with cluster.forward("service/one", 8000) as one:
        assert chat(one, "shared", "Hi")[0] in (404, 503)
