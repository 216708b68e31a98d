"""What stands in the way is said in one sentence: causes made for real, without an engine to wait for."""

import json
import time
from typing import Any

import pytest

from .conftest import Cluster, eventually, manifest

pytestmark = pytest.mark.timeout(600)


def worker(**fields: Any) -> dict[str, Any]:
    return {"sharedMemorySize": "1Gi", "resources": {"limits": {"memory": "4Gi"}}, **fields}


CASES: list[tuple[str, dict[str, Any], str, str, str, str]] = [
    # name, spec, condition, status, reason, what the message names
    (
        "no-image",
        {"worker": worker(image="localhost/no/such-image:1"), "frontend": {"mode": "None"}},
        "Available",
        "False",
        "ImagePullFailed",
        "localhost/no/such-image:1",
    ),
    (
        "no-gpu",
        {"worker": worker(resources={"limits": {"nvidia.com/gpu": 1}}), "frontend": {"mode": "None"}},
        "Available",
        "False",
        "InsufficientGPU",
        "nvidia.com/gpu",
    ),
    (
        "no-cpu",
        {"worker": worker(resources={"requests": {"cpu": "500"}}), "frontend": {"mode": "None"}},
        "Available",
        "False",
        "Unschedulable",
        "Insufficient cpu",
    ),
    (
        "bad-json",
        {
            "worker": worker(env=[{"name": "DYN_HEALTH_CHECK_PAYLOAD", "value": '{"prompt": "s3cret"'}]),
            "frontend": {"mode": "None"},
        },
        "ConfigurationResolved",
        "False",
        "InvalidPayload",
        "DYN_HEALTH_CHECK_PAYLOAD",
    ),
    (
        "no-file",
        {
            "worker": worker(env=[{"name": "DYN_HEALTH_CHECK_PAYLOAD", "value": "@/no/such/file.json"}]),
            "frontend": {"mode": "None"},
        },
        "ConfigurationResolved",
        "False",
        "InvalidPayload",
        "DYN_HEALTH_CHECK_PAYLOAD",
    ),
    (
        "no-secret",
        {
            "worker": worker(envFrom=[{"secretRef": {"name": "not-there"}}]),
            "frontend": {"mode": "None"},
        },
        "ResolvedRefs",
        "False",
        "SecretNotFound",
        "not-there",
    ),
    (
        "no-claim",
        {"model": {"uri": "pvc://not-there/model"}, "frontend": {"mode": "None"}},
        "ResolvedRefs",
        "False",
        "ClaimNotFound",
        "not-there",
    ),
    (
        "out-of-memory",
        {  # all at once: where the limit is tight, a process may thrash instead for minutes
            "worker": worker(resources={"limits": {"memory": "2Gi"}}),
            "handlers": {"script": {"inline": "hog = b'x' * (4 << 30)"}},
            "frontend": {"mode": "None"},
        },
        "Available",
        "False",
        "OOMKilled",
        "2Gi",
    ),
    (
        "bad-argument",
        {
            "engine": {"args": ["--enforce-eager", "--no-such-argument", "1"]},
            "worker": worker(),
            "frontend": {"mode": "None"},
        },
        "ConfigurationResolved",
        "False",
        "InvalidEngineArguments",
        "--no-such-argument",
    ),
]


@pytest.mark.parametrize(
    ("name", "spec", "kind", "status", "reason", "named"), CASES, ids=[c[0] for c in CASES]
)
def test_cause(
    cluster: Cluster, name: str, spec: dict[str, Any], kind: str, status: str, reason: str, named: str
) -> None:
    cluster.apply(manifest(name, **spec))
    try:
        found = eventually(
            lambda: cluster.condition(name, kind),
            lambda c: (c["status"], c["reason"]) == (status, reason),
            120,
        )
        assert named in found["message"]
        assert "s3cret" not in json.dumps(cluster.endpoint(name)["status"])
        ready = cluster.condition(name, "Ready")
        assert ready["status"] == "False"
    finally:
        cluster.kubectl("delete", "vep", name, "--wait")


def test_refused_configuration_never_restarts_the_worker(cluster: Cluster) -> None:
    """A hot setting refused at the first start: the worker stays, says why, and serves once mended."""
    cluster.apply(
        manifest(
            "mended",
            frontend={"mode": "None"},
            healthCheck={"payload": {"prompt": "x", "no_such_field": 1}, "timeoutSeconds": 5},
        )
    )
    found = eventually(
        lambda: cluster.condition("mended", "ConfigurationResolved"), lambda c: c["status"] == "False", 120
    )
    assert "no_such_field" in found["message"]
    time.sleep(5)
    (pod,) = cluster.workers("mended")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    undo = [{"op": "remove", "path": "/spec/healthCheck/payload/no_such_field"}]
    cluster.kubectl("patch", "vep", "mended", "--type=json", "-p", json.dumps(undo))
    cluster.wait_ready("mended", 300)
    (after,) = cluster.workers("mended")
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    cluster.kubectl("delete", "vep", "mended", "--wait")
