"""With one GPU, the new pod waits for the GPU of the old one, and no condition reports a failure."""

import json

import pytest

from tests.e2e.conftest import TOY, Cluster, eventually, manifest

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("gpu")]
NAME = "one-gpu"


def test_a_rollout_on_the_only_gpu_reports_no_failure(cluster: Cluster) -> None:
    made = manifest(NAME, uri=TOY, frontend={"mode": "None"})
    made["spec"]["worker"]["resources"]["limits"]["nvidia.com/gpu"] = 1
    cluster.apply(made)
    cluster.wait_ready(NAME)
    (old,) = cluster.workers(NAME)

    paths = [f'.conditions[?(@.type=="{kind}")]' for kind in ("Available", "UpToDate")]
    with cluster.watch_status(NAME, *paths) as lines:
        cluster.change(NAME, engine={"args": [*made["spec"]["engine"]["args"], "--seed", "1"]})
        generation = cluster.endpoint(NAME)["metadata"]["generation"]
        eventually(
            lambda: cluster.condition(NAME, "UpToDate"),
            lambda c: (c["status"], c.get("observedGeneration")) == ("True", generation),
            120,
        )
        cluster.wait_ready(NAME)
    (new,) = cluster.workers(NAME)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    reasons = {json.loads(line)["reason"] for line in lines if line}
    assert any("still holds" in line for line in lines), "the new pod did not wait, so nothing was tested"
    assert reasons <= {"Available", "Starting", "UpToDate", "RollingOut"}, reasons
    selector = f"involvedObject.name={NAME},type=Warning"
    warnings = cluster.get("events", "--field-selector", selector)["items"]
    assert [event["message"] for event in warnings] == []
