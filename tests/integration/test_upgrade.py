"""Version N of the chart, N+1 by `helm upgrade`, back by `helm rollback`: the user decides when pods change.

N+1 is another release of the chart (its version names another default worker image) and an operator that
renders workers and frontends differently, as the next version's code may.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import BIN, ROOT, Api, Space
from tests.integration.fake_worker import REPORT_PORT

NAME = "vllmendpoint-operator"
CHART = ROOT / "charts" / NAME
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
def fresh(tmp_path: Path) -> Iterator[Api]:
    """A control plane of its own: the chart brings the CRDs."""
    folder = tmp_path / "cluster"
    command = [BIN / "cluster", "controlplane", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"ready ")
            api = Api(folder)
            for name in (OPS, NAMESPACE):
                api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            yield api
            api.close()
        finally:
            process.terminate()


def helm(api: Api, *arguments: str | Path) -> None:
    command = [BIN / "helm", f"--kubeconfig={api.kubeconfig}", "--namespace", OPS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def release(folder: Path, version: str) -> Path:
    """The chart as that version would ship it."""
    chart = folder / version
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text()
    lines = [
        f"{line.split(':')[0]}: {version}" if line.startswith(("version:", "appVersion:")) else line
        for line in text.splitlines()
    ]
    (chart / "Chart.yaml").write_text("\n".join(lines) + "\n")
    return chart


@contextlib.contextmanager
def operating(api: Api, folder: Path, code: str = "") -> Iterator[None]:
    """The operator as the installed Deployment would run it: its environment and its service account."""
    deployment = api.get("Deployment", OPS, NAME)
    assert deployment is not None
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {
        item["name"]: "here" if "valueFrom" in item else item.get("value", "") for item in container["env"]
    }
    kubeconfig = json.loads(api.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    token = api.kubectl("create", "token", NAME, "-n", OPS).strip()
    kubeconfig["users"] = [{"name": "operator", "user": {"token": token}}]
    for context in kubeconfig["contexts"]:
        context["context"]["user"] = "operator"
    path = folder / "operator.json"
    path.write_text(json.dumps(kubeconfig))
    start = f"{code}\nimport sys\nfrom vllmendpoint_operator.main import main\nsys.exit(main())"
    log = folder / "operator.log"
    overridden = {
        "VLLMENDPOINT_BIND_ADDRESS": "127.0.0.1",
        "VLLMENDPOINT_METRICS_PORT": "0",
        "VLLMENDPOINT_HEALTH_PORT": "0",
        "VLLMENDPOINT_REPORT_PORT": str(REPORT_PORT),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", start, f"--kubeconfig={path}"],
            env={**os.environ, **env, **overridden},
            stdout=out,
            stderr=out,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            code_ = process.wait(20)
    text = log.read_text()
    assert code_ == 0, text
    assert "forbidden" not in text.lower(), text
    assert "Traceback" not in text, text


def rendered(endpoint: Space) -> dict[str, Any]:
    """What must not change by itself: both pod templates, and who the pods are."""
    deployments = [endpoint.child("Deployment", suffix) for suffix in ("-workers", "-frontend")]
    return {
        "templates": [deployment["spec"]["template"] for deployment in deployments if deployment],
        "generations": [deployment["metadata"]["generation"] for deployment in deployments if deployment],
        "pods": sorted(pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")),
    }


def image(endpoint: Space) -> str:
    container = rendered(endpoint)["templates"][0]["spec"]["containers"][0]
    return str(container["image"]).rsplit(":", 1)[1]


def names(endpoint: Space) -> set[str]:
    containers = [template["spec"]["containers"][0] for template in rendered(endpoint)["templates"]]
    return set.intersection(*({item["name"] for item in container["env"]} for container in containers))


def taken_up(endpoint: Space, until: Callable[..., Any], value: str) -> None:
    """The user asks for the rollout, and the pods that it makes serve."""
    old = {pod["metadata"]["uid"] for pod in endpoint.pods() + endpoint.pods("frontend")}
    endpoint.patch(metadata={"annotations": {ROLLOUT: value}})

    def played() -> bool:
        for pod in endpoint.pods() + endpoint.pods("frontend"):
            if pod["metadata"]["uid"] not in old and not pod["metadata"].get("deletionTimestamp"):
                old.add(pod["metadata"]["uid"])
                if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker":
                    endpoint.work(pod)
                else:
                    endpoint.play(pod)
        return endpoint.condition("UpToDate").get("status") == "True" and not newer(endpoint)

    until(played, lambda: endpoint.get()["status"], seconds=40)
    endpoint.until("Ready", "True")


def newer(endpoint: Space) -> bool:
    return bool(endpoint.get()["status"]["revision"]["upgradeAvailable"])


def test_an_upgrade_and_back(
    fresh: Api, tmp_path: Path, until: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    one, two = release(tmp_path, "0.8.0"), release(tmp_path, "0.9.0")
    helm(fresh, "install", NAME, one)
    asking, waiting = Space(fresh, NAMESPACE, "asking"), Space(fresh, NAMESPACE, "waiting")
    request.addfinalizer(lambda: [worker.cut() for space in (asking, waiting) for worker in space.started])
    with operating(fresh, tmp_path):
        for endpoint in (asking, waiting):
            endpoint.create(replicas=2)
        for endpoint in (asking, waiting):
            endpoint.serve(2)
            endpoint.until("Ready", "True")
            assert not newer(endpoint)
    before = {endpoint.name: rendered(endpoint) for endpoint in (asking, waiting)}
    assert image(asking) == "0.8.0"

    helm(fresh, "upgrade", NAME, two)
    with operating(fresh, tmp_path, NEXT):
        for endpoint in (asking, waiting):
            until(lambda endpoint=endpoint: newer(endpoint), "the upgrade is told", 40)
            endpoint.until("Ready", "True")
            assert rendered(endpoint) == before[endpoint.name]
            assert endpoint.get()["status"]["revision"]["image"].endswith(":0.8.0")
        waiting.patch(spec={"healthCheck": {"level": "Standard"}})
        until(
            lambda: waiting.get()["status"]["observedGeneration"] == waiting.get()["metadata"]["generation"],
            "a hot setting is taken in by the new version",
        )
        taken_up(asking, until, "1")
        assert image(asking) == "0.9.0"
        assert "OF_THE_NEXT_VERSION" in names(asking)
        assert rendered(waiting) == before["waiting"]
        assert newer(waiting)
    before["asking"] = rendered(asking)

    helm(fresh, "rollback", NAME, "1")
    with operating(fresh, tmp_path):
        until(lambda: newer(asking), "going back is an upgrade like any other", 40)
        until(lambda: not newer(waiting), "its own version is back")
        for endpoint in (asking, waiting):
            assert rendered(endpoint) == before[endpoint.name]
        assert asking.condition("Ready")["status"] == "True"
        taken_up(asking, until, "2")
        assert image(asking) == "0.8.0"
        assert "OF_THE_NEXT_VERSION" not in names(asking)
