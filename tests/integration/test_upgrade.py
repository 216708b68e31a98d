"""`helm upgrade` to the next version of the chart, and `helm rollback`: pods change when the user requests
it.

The next version has another default worker image, one more field in its CRD, and an operator that renders
workers and frontends differently.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.chart.installed_chart import CHART, NAME, Cluster, running_cluster, running_operator
from tests.integration.endpoint_under_test import EndpointUnderTest

CRD = "vllmendpoints.serving.vllmendpoint.dev"
FIELD = "ofTheNextVersion"
OPS, NAMESPACE = "ops", "a"
ROLLOUT = "serving.vllmendpoint.dev/rollout"

NEXT = """
import vllmendpoint_operator.plan.revision as revision

def with_variable(render):
    def rendered(*arguments):
        template = render(*arguments)
        template["spec"]["containers"][0]["env"].append({"name": "OF_THE_NEXT_VERSION", "value": "1"})
        return template
    return rendered

revision.worker_template = with_variable(revision.worker_template)
revision.frontend_template = with_variable(revision.frontend_template)
"""
"""The interpreter runs it before the operator: the change of plan/ in the next version."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A separate control plane: the chart installs the CRDs."""
    with running_cluster(tmp_path / "cluster") as running:
        for name in (OPS, NAMESPACE):
            running.kubectl("create", "namespace", name)
        yield running


def release(folder: Path, version: str, *fields: str) -> Path:
    """A copy of the chart with this version and additional fields in the spec."""
    chart = folder / version
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text()
    lines = [
        f"{line.split(':')[0]}: {version}" if line.startswith(("version:", "appVersion:")) else line
        for line in text.splitlines()
    ]
    (chart / "Chart.yaml").write_text("\n".join(lines) + "\n")
    path = chart / "files/crds/vllmendpoints.yaml"
    crd = yaml.safe_load(path.read_text())
    schema_of(crd).update({field: {"type": "string"} for field in fields})
    path.write_text(yaml.safe_dump(crd))
    return chart


def schema_of(crd: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the fields of the spec."""
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, Any] = root["properties"]["spec"]["properties"]
    return found


def rendered(endpoint: EndpointUnderTest) -> dict[str, Any]:
    """What must not change without a request: both pod templates and the pods."""
    deployments = [endpoint.child("Deployment", suffix) for suffix in ("-workers", "-frontend")]
    return {
        "templates": [deployment["spec"]["template"] for deployment in deployments if deployment],
        "generations": [deployment["metadata"]["generation"] for deployment in deployments if deployment],
        "pods": sorted(pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")),
    }


def image_tag(endpoint: EndpointUnderTest) -> str:
    return endpoint.worker_image().rsplit(":", 1)[1]


def variables(endpoint: EndpointUnderTest) -> set[str]:
    containers = [template["spec"]["containers"][0] for template in rendered(endpoint)["templates"]]
    return set.intersection(*({item["name"] for item in container["env"]} for container in containers))


def roll_out(endpoint: EndpointUnderTest, until: Callable[..., Any], value: str) -> None:
    """Request a rollout, and make its pods ready until it is complete."""
    old = {pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")}
    endpoint.patch(metadata={"annotations": {ROLLOUT: value}})

    def is_complete() -> bool:
        for pod in endpoint.pods() + endpoint.pods("frontend"):
            if pod["metadata"]["uid"] not in old and not pod["metadata"].get("deletionTimestamp"):
                old.add(pod["metadata"]["uid"])
                if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker":
                    endpoint.start_worker(pod)
                else:
                    endpoint.set_pod_status(pod)
        # Both of one status: between two reads the rollout may begin.
        status = endpoint.get()["status"]
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")["status"] == "True"
        return ready and not status["revision"]["upgradeAvailable"]

    until(is_complete, lambda: endpoint.get()["status"], seconds=40)


def has_upgrade(endpoint: EndpointUnderTest) -> bool:
    return bool(endpoint.get()["status"]["revision"]["upgradeAvailable"])


def writes(cluster: Cluster, since: int) -> set[str]:
    """``verb resource`` of the operator's writes after the first ``since`` requests, except of its lease."""
    return {
        "/".join(filter(None, (f"{entry['verb']} {about['resource']}", about.get("subresource"))))
        for entry in cluster.requests(f"{OPS}/{NAME}")[since:]
        if (about := entry.get("objectRef", {})).get("resource") not in (None, "leases")
        and entry["verb"] in ("create", "update", "patch", "delete")
    }


def test_an_upgrade_and_a_rollback_change_no_pod_until_a_rollout_is_requested(
    cluster: Cluster, tmp_path: Path, until: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    def helm(*arguments: str | Path) -> None:
        cluster.helm(*arguments, "--namespace", OPS)

    def request_count() -> int:
        return len(cluster.requests(f"{OPS}/{NAME}"))

    one, two = release(tmp_path, "0.8.0"), release(tmp_path, "0.9.0", FIELD)
    helm("install", NAME, one)
    rolled, kept = (EndpointUnderTest(cluster.api, NAMESPACE, name) for name in ("rolled", "kept"))
    request.addfinalizer(
        lambda: [worker.close_streams() for endpoint in (rolled, kept) for worker in endpoint.started]
    )
    with running_operator(cluster, OPS, tmp_path):
        for endpoint in (rolled, kept):
            endpoint.create(replicas=2)
        for endpoint in (rolled, kept):
            endpoint.start_all(2)
            endpoint.until("Ready", "True")
            assert not has_upgrade(endpoint)
    before = {endpoint.name: rendered(endpoint) for endpoint in (rolled, kept)}
    assert image_tag(rolled) == "0.8.0"
    assert FIELD not in schema_of(cluster.get("crd", CRD))

    helm("upgrade", NAME, two)
    assert FIELD in schema_of(cluster.get("crd", CRD))
    offset = request_count()
    with running_operator(cluster, OPS, tmp_path, NEXT):
        for endpoint in (rolled, kept):
            until(lambda endpoint=endpoint: has_upgrade(endpoint), "the upgrade is reported", 40)
            endpoint.until("Ready", "True")
            assert rendered(endpoint) == before[endpoint.name]
            assert endpoint.get()["status"]["revision"]["image"].endswith(":0.8.0")
        assert writes(cluster, offset) == {"patch vllmendpoints/status"}
        kept.patch(spec={"healthCheck": {"level": "Standard"}})
        until(
            lambda: kept.get()["status"]["observedGeneration"] == kept.get()["metadata"]["generation"],
            "the new version reconciles a setting that needs no restart",
        )
        roll_out(rolled, until, "1")
        assert image_tag(rolled) == "0.9.0"
        assert "OF_THE_NEXT_VERSION" in variables(rolled)
        assert rendered(kept) == before["kept"]
        kept.patch(spec={"replicas": 3})
        until(lambda: len(kept.pods()) == 3, "another replica")
        images = {pod["spec"]["containers"][0]["image"].rsplit(":", 1)[1] for pod in kept.pods()}
        assert images == {"0.8.0"}, "the new replica has the same image"
        assert rendered(kept)["templates"] == before["kept"]["templates"]
        assert has_upgrade(kept)
    before = {endpoint.name: rendered(endpoint) for endpoint in (rolled, kept)}

    helm("rollback", NAME, "1")
    assert FIELD not in schema_of(cluster.get("crd", CRD))
    with running_operator(cluster, OPS, tmp_path):
        until(lambda: has_upgrade(rolled), "a rollback is an upgrade, too", 40)
        until(lambda: not has_upgrade(kept), "its version is active again")
        for endpoint in (rolled, kept):
            assert rendered(endpoint) == before[endpoint.name]
        assert rolled.condition("Ready")["status"] == "True"
        roll_out(rolled, until, "2")
        assert image_tag(rolled) == "0.8.0"
        assert "OF_THE_NEXT_VERSION" not in variables(rolled)
