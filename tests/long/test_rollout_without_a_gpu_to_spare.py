"""One GPU, in use: the new pod waits for the old one's, and nobody is alarmed on the way."""

import json

import pytest

from tests.e2e.conftest import TOY, Cluster, eventually, manifest

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("gpu")]
NAME = "one-gpu"


def test_a_rollout_on_the_only_gpu(cluster: Cluster) -> None:
    made = manifest(NAME, uri=TOY, frontend={"mode": "None"})
    made["spec"]["worker"]["resources"]["limits"]["nvidia.com/gpu"] = 1
    cluster.apply(made)
    cluster.wait_ready(NAME)
    (old,) = cluster.workers(NAME)

    paths = [f'.conditions[?(@.type=="{kind}")]' for kind in ("Available", "UpToDate")]
    with cluster.watching(NAME, *paths) as said:
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
    reasons = {json.loads(line)["reason"] for line in said if line}
    assert any("still holds" in line for line in said), "it waited: else this shows nothing"
    assert reasons <= {"Available", "Starting", "UpToDate", "RollingOut"}, reasons
    told = cluster.get("events", "--field-selector", f"involvedObject.name={NAME},type=Warning")["items"]
    assert [event["message"] for event in told] == []
