"""Custom handlers from the resource: a script answers, is swapped in running pods, and refused."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from vllmendpoint_api import script_digest

from .conftest import ROOT, TOY, Cluster, eventually, manifest, post

pytestmark = pytest.mark.timeout(900)
NAME = "handlers"
PING = """
from fastapi import Response
def custom_sagemaker_ping_handler(request):
    return Response(status_code=%s)
def custom_sagemaker_invocation_handler(request):
    return "swapped"
"""


@pytest.fixture(scope="module")
def script(cluster: Cluster) -> str:
    """The sample, on the small model."""
    config_map, endpoint = yaml.safe_load_all((ROOT / "samples/handlers.yaml").read_text())
    small = manifest(NAME, uri=TOY)["spec"]
    endpoint["spec"] |= {
        "model": {"uri": TOY},
        "engine": small["engine"],
        "worker": {**endpoint["spec"]["worker"], "env": small["worker"]["env"]},
        "frontend": {"mode": "None"},
        "healthCheck": {"periodSeconds": 5, "timeoutSeconds": 5},
    }
    cluster.apply(config_map)
    cluster.apply(endpoint)
    cluster.wait_ready(NAME)
    return str(config_map["data"]["model.py"])


@pytest.fixture(scope="module")
def url(cluster: Cluster, script: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}-workers", 8080) as base:
        yield f"{base}/invocations"


def change(cluster: Cluster, script: str) -> str:
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "handlers"},
            "data": {"model.py": script},
        }
    )
    return script_digest(script.encode())


def handlers(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.endpoint(NAME)["status"]["handlers"])


def test_the_sample_answers_with_the_engine(cluster: Cluster, url: str, script: str) -> None:
    status, body = post(url, {"prompt": "hello", "max_tokens": 4})
    assert status == 200, body
    assert json.loads(body)["predictions"][0]
    assert handlers(cluster) == {
        "scriptDigest": script_digest(script.encode()),
        "ping": {"source": "Decorator", "handler": "model:health_check"},
        "invocations": {"source": "Decorator", "handler": "model:answer"},
    }


def test_a_changed_script_is_taken_in_without_a_restart(cluster: Cluster, url: str, script: str) -> None:
    (before,) = cluster.workers(NAME)
    old, new = script_digest(script.encode()), change(cluster, PING % 200)
    eventually(lambda: handlers(cluster)["scriptDigest"], lambda digest: digest == new, 60)
    assert json.loads(post(url, {})[1]) == "swapped"
    (after,) = cluster.workers(NAME)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    says = eventually(
        lambda: cluster.kubectl("get", "events", "--field-selector", "reason=HandlersChanged"),
        lambda text: new in text,
        20,
    )
    assert f"from {old} to {new}" in says


def test_a_bad_script_is_refused_and_the_last_good_one_answers(cluster: Cluster, url: str) -> None:
    change(cluster, "import no_such_module_here\n")
    condition = eventually(
        lambda: cluster.condition(NAME, "ConfigurationResolved"), lambda c: c["status"] == "False", 60
    )
    assert condition["reason"] == "HandlerImportFailed"
    assert (
        "model.py line 1: ModuleNotFoundError: No module named 'no_such_module_here'" in condition["message"]
    )
    assert cluster.condition(NAME, "Available")["status"] == "True"
    assert json.loads(post(url, {})[1]) == "swapped"


def test_a_custom_ping_that_fails_takes_the_replica_out(cluster: Cluster) -> None:
    change(cluster, PING % 503)
    condition = eventually(lambda: cluster.condition(NAME, "Available"), lambda c: c["status"] == "False", 60)
    assert condition["reason"] == "PingFailed"
    assert "answers 503 instead of 200" in condition["message"]
    assert cluster.condition(NAME, "Generating")["status"] == "True"
    change(cluster, PING % 200)
    cluster.wait_ready(NAME, 60)


def test_a_script_that_is_not_there(cluster: Cluster) -> None:
    script = {"configMapKeyRef": {"name": "handlers", "key": "gone.py"}}
    cluster.apply(manifest("noscript", handlers={"script": script}, frontend={"mode": "None"}))
    condition = eventually(
        lambda: cluster.condition("noscript", "ResolvedRefs"), lambda c: c["status"] == "False", 30
    )
    assert condition["reason"] == "ConfigMapKeyNotFound"
    assert "'gone.py'; it has: model.py" in condition["message"]
    cluster.kubectl("delete", "vep", "noscript", "--wait=false")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"handlers": {"ping": "health"}},
            "handlers.ping: must have the form file:function or module:function",
        ),
        ({"handlers": {"script": {}}}, "handlers.script: set exactly one of inline and configMapKeyRef"),
        (
            {"model": {"uri": TOY, "artifactsUri": "https://x/y"}},
            "model.artifactsUri: give s3://bucket/prefix/",
        ),
        ({"healthCheck": {"expect": {"regex": "(a"}}}, "healthCheck.expect.regex"),
    ],
)
def test_admission_refuses(cluster: Cluster, spec: dict[str, Any], says: str) -> None:
    text = yaml.safe_dump(manifest("refused", **spec))
    out = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=text, check=False)
    assert says in out, out
