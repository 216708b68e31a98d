"""Version N of the chart, N+1 by `helm upgrade`, back by `helm rollback`: the user decides when pods change.

N+1 is another release of the chart (its version names another default worker image, its CRD has one more
field) and an operator that renders workers and frontends differently, as the next version's code may.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.chart.installed_chart import CHART, NAME, Cluster, control_plane, operating
from tests.integration.endpoint_under_test import EndpointUnderTest

CRD = "vllmendpoints.serving.vllmendpoint.dev"
FIELD = "ofTheNextVersion"
OPS, NAMESPACE = "ops", "a"
ROLLOUT = "serving.vllmendpoint.dev/rollout"

NEXT = """
import vllmendpoint_operator.plan.revision as revision

def renders_more(render):
    def rendered(*arguments):
        template = render(*arguments)
        template["spec"]["containers"][0]["env"].append({"name": "OF_THE_NEXT_VERSION", "value": "1"})
        return template
    return rendered

revision.worker_template = renders_more(revision.worker_template)
revision.frontend_template = renders_more(revision.frontend_template)
"""
"""Run by the interpreter before the operator: what the next version's plan/ would do."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A control plane of its own: the chart brings the CRDs."""
    with control_plane(tmp_path / "cluster") as running:
        for name in (OPS, NAMESPACE):
            running.kubectl("create", "namespace", name)
        yield running


def release(folder: Path, version: str, *fields: str) -> Path:
    """The chart as that version would ship it, with further fields of a spec."""
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
    """The fields of a spec."""
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, Any] = root["properties"]["spec"]["properties"]
    return found


def rendered(endpoint: EndpointUnderTest) -> dict[str, Any]:
    """What must not change by itself: both pod templates, and who the pods are."""
    deployments = [endpoint.child("Deployment", suffix) for suffix in ("-workers", "-frontend")]
    return {
        "templates": [deployment["spec"]["template"] for deployment in deployments if deployment],
        "generations": [deployment["metadata"]["generation"] for deployment in deployments if deployment],
        "pods": sorted(pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")),
    }


def image(endpoint: EndpointUnderTest) -> str:
    container = rendered(endpoint)["templates"][0]["spec"]["containers"][0]
    return str(container["image"]).rsplit(":", 1)[1]


def names(endpoint: EndpointUnderTest) -> set[str]:
    containers = [template["spec"]["containers"][0] for template in rendered(endpoint)["templates"]]
    return set.intersection(*({item["name"] for item in container["env"]} for container in containers))


def taken_up(endpoint: EndpointUnderTest, until: Callable[..., Any], value: str) -> None:
    """The user asks for the rollout, and the pods that it makes serve."""
    old = {pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")}
    endpoint.patch(metadata={"annotations": {ROLLOUT: value}})

    def played() -> bool:
        for pod in endpoint.pods() + endpoint.pods("frontend"):
            if pod["metadata"]["uid"] not in old and not pod["metadata"].get("deletionTimestamp"):
                old.add(pod["metadata"]["uid"])
                if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker":
                    endpoint.start_worker(pod)
                else:
                    endpoint.set_pod_status(pod)
        # Of one reading: between two the rollout may begin.
        status = endpoint.get()["status"]
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")["status"] == "True"
        return ready and not status["revision"]["upgradeAvailable"]

    until(played, lambda: endpoint.get()["status"], seconds=40)


def newer(endpoint: EndpointUnderTest) -> bool:
    return bool(endpoint.get()["status"]["revision"]["upgradeAvailable"])


def writes(cluster: Cluster, since: int) -> set[str]:
    """What the operator wrote since then, its lease apart: ``verb resource``."""
    return {
        "/".join(filter(None, (f"{entry['verb']} {about['resource']}", about.get("subresource"))))
        for entry in cluster.requests(f"{OPS}/{NAME}")[since:]
        if (about := entry.get("objectRef", {})).get("resource") not in (None, "leases")
        and entry["verb"] in ("create", "update", "patch", "delete")
    }


def test_an_upgrade_and_back(
    cluster: Cluster, tmp_path: Path, until: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    def helm(*arguments: str | Path) -> None:
        cluster.helm(*arguments, "--namespace", OPS)

    def asked() -> int:
        return len(cluster.requests(f"{OPS}/{NAME}"))

    one, two = release(tmp_path, "0.8.0"), release(tmp_path, "0.9.0", FIELD)
    helm("install", NAME, one)
    asking, waiting = (EndpointUnderTest(cluster.api, NAMESPACE, name) for name in ("asking", "waiting"))
    request.addfinalizer(
        lambda: [worker.close_streams() for endpoint in (asking, waiting) for worker in endpoint.started]
    )
    with operating(cluster, OPS, tmp_path):
        for endpoint in (asking, waiting):
            endpoint.create(replicas=2)
        for endpoint in (asking, waiting):
            endpoint.start_all(2)
            endpoint.until("Ready", "True")
            assert not newer(endpoint)
    before = {endpoint.name: rendered(endpoint) for endpoint in (asking, waiting)}
    assert image(asking) == "0.8.0"
    assert FIELD not in schema_of(cluster.get("crd", CRD))

    helm("upgrade", NAME, two)
    assert FIELD in schema_of(cluster.get("crd", CRD))
    mark = asked()
    with operating(cluster, OPS, tmp_path, NEXT):
        for endpoint in (asking, waiting):
            until(lambda endpoint=endpoint: newer(endpoint), "the upgrade is told", 40)
            endpoint.until("Ready", "True")
            assert rendered(endpoint) == before[endpoint.name]
            assert endpoint.get()["status"]["revision"]["image"].endswith(":0.8.0")
        assert writes(cluster, mark) == {"patch vllmendpoints/status"}
        waiting.patch(spec={"healthCheck": {"level": "Standard"}})
        until(
            lambda: waiting.get()["status"]["observedGeneration"] == waiting.get()["metadata"]["generation"],
            "a hot setting is taken in by the new version",
        )
        taken_up(asking, until, "1")
        assert image(asking) == "0.9.0"
        assert "OF_THE_NEXT_VERSION" in names(asking)
        assert rendered(waiting) == before["waiting"]
        waiting.patch(spec={"replicas": 3})
        until(lambda: len(waiting.pods()) == 3, "another replica")
        images = {pod["spec"]["containers"][0]["image"].rsplit(":", 1)[1] for pod in waiting.pods()}
        assert images == {"0.8.0"}, "one more is one of the same"
        assert rendered(waiting)["templates"] == before["waiting"]["templates"]
        assert newer(waiting)
    before = {endpoint.name: rendered(endpoint) for endpoint in (asking, waiting)}

    helm("rollback", NAME, "1")
    assert FIELD not in schema_of(cluster.get("crd", CRD))
    with operating(cluster, OPS, tmp_path):
        until(lambda: newer(asking), "going back is an upgrade like any other", 40)
        until(lambda: not newer(waiting), "its own version is back")
        for endpoint in (asking, waiting):
            assert rendered(endpoint) == before[endpoint.name]
        assert asking.condition("Ready")["status"] == "True"
        taken_up(asking, until, "2")
        assert image(asking) == "0.8.0"
        assert "OF_THE_NEXT_VERSION" not in names(asking)
