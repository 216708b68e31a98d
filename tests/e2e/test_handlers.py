"""Custom handlers of an endpoint: a script serves, is replaced in running pods, and rejected if invalid."""

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
    """The script of the sample, which serves with the small model."""
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


def update_script(cluster: Cluster, script: str) -> str:
    """Write the script to the ConfigMap; returns its digest."""
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


def test_the_handlers_of_the_sample_answer_with_the_engine(cluster: Cluster, url: str, script: str) -> None:
    status, body = post(url, {"prompt": "hello", "max_tokens": 4})
    assert status == 200, body
    assert json.loads(body)["predictions"][0]
    assert handlers(cluster) == {
        "scriptDigest": script_digest(script.encode()),
        "ping": {"source": "Decorator", "handler": "model:health_check"},
        "invocations": {"source": "Decorator", "handler": "model:answer"},
    }


def test_a_changed_script_is_loaded_without_a_restart(cluster: Cluster, url: str, script: str) -> None:
    (before,) = cluster.workers(NAME)
    old, new = script_digest(script.encode()), update_script(cluster, PING % 200)
    eventually(lambda: handlers(cluster)["scriptDigest"], lambda digest: digest == new, 60)
    assert json.loads(post(url, {})[1]) == "swapped"
    (after,) = cluster.workers(NAME)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    events = eventually(
        lambda: cluster.kubectl("get", "events", "--field-selector", "reason=HandlersChanged"),
        lambda text: new in text,
        20,
    )
    assert f"from {old} to {new}" in events


def test_an_invalid_script_is_rejected_and_the_last_valid_one_serves(cluster: Cluster, url: str) -> None:
    update_script(cluster, "import no_such_module_here\n")
    condition = eventually(
        lambda: cluster.condition(NAME, "ConfigurationResolved"), lambda c: c["status"] == "False", 60
    )
    assert condition["reason"] == "HandlerImportFailed"
    assert (
        "model.py line 1: ModuleNotFoundError: No module named 'no_such_module_here'" in condition["message"]
    )
    assert cluster.condition(NAME, "Available")["status"] == "True"
    assert json.loads(post(url, {})[1]) == "swapped"


def test_a_failing_custom_ping_makes_the_replica_unavailable(cluster: Cluster) -> None:
    update_script(cluster, PING % 503)
    condition = eventually(lambda: cluster.condition(NAME, "Available"), lambda c: c["status"] == "False", 60)
    assert condition["reason"] == "PingFailed"
    assert "answers 503 instead of 200" in condition["message"]
    assert cluster.condition(NAME, "Generating")["status"] == "True"
    update_script(cluster, PING % 200)
    cluster.wait_ready(NAME, 60)


def test_a_missing_key_of_the_script_is_an_unresolved_reference(cluster: Cluster) -> None:
    script = {"configMapKeyRef": {"name": "handlers", "key": "gone.py"}}
    cluster.apply(manifest("noscript", handlers={"script": script}, frontend={"mode": "None"}))
    condition = eventually(
        lambda: cluster.condition("noscript", "ResolvedRefs"), lambda c: c["status"] == "False", 30
    )
    assert condition["reason"] == "ConfigMapKeyNotFound"
    assert "'gone.py'. Its keys: model.py." in condition["message"]
    cluster.kubectl("delete", "vep", "noscript", "--wait=false")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"handlers": {"ping": "health"}},
            "handlers.ping: must have the form file:function or module:function",
        ),
        ({"handlers": {"script": {}}}, "handlers.script: set exactly one of inline and configMapKeyRef"),
        (
            {"model": {"uri": TOY, "artifactsUri": "https://x/y"}},
            "model.artifactsUri: must have the form s3://bucket/prefix/",
        ),
        ({"healthCheck": {"expect": {"regex": "(a"}}}, "healthCheck.expect.regex"),
    ],
)
def test_admission_rejects_an_invalid_spec(cluster: Cluster, spec: dict[str, Any], message: str) -> None:
    text = yaml.safe_dump(manifest("rejected", **spec))
    out = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=text, check=False)
    assert message in out, out
