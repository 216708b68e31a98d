"""Fields that no other test of this folder sets, on one real worker, and the stages of its start."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ONE_PROCESS, SYSTEM, Cluster, chat, eventually, manifest, post
from tests.e2e.hub import REVISION, Hub, serve_hub
from tests.project_cache import CACHE
from vllmendpoint_api import script_digest

from .bucket import SECRET_KEY, bucket

pytestmark = pytest.mark.timeout(600)
NAME = "fields"
ACCOUNT = "reads-my-bucket"
TOKEN = "hf_token-of-the-hub"
SEED = 4711
SCRIPT = """
import asyncio
import model_hosting_container_standards.sagemaker as sagemaker_standards

@sagemaker_standards.custom_invocation_handler
async def decorated(request):
    return "the decorated handler"

async def named(request):
    return "the named handler"

slow = [6]  # seconds of the first ping, in the stage Warming: a stage is reported every 5 s at most

async def alive(request):
    await asyncio.sleep(slow.pop() if slow else 0)
    return {"status": "alive"}
"""
STAGES = ["Downloading", "StartingEngine", "LoadingWeights", "Compiling", "AllocatingCache"]
STAGES += ["Warming", "Registering", "Serving"]


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def volume(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """A volume that only the endpoint's claim can use."""
    claim = {"kind": "PersistentVolumeClaim", "namespace": cluster.namespace, "name": f"{NAME}-cache"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{cluster.namespace}-cache"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": claim,
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def endpoint(hub: Hub, s3: dict[str, str]) -> dict[str, Any]:
    made = manifest(NAME)
    made["spec"]["engine"]["config"] = {"inline": {"seed": SEED}}
    made["spec"] |= {
        "model": {
            "uri": "hf://team/toy",
            "tokenSecretRef": {"name": "hub", "key": "its-token"},
            "artifactsUri": "s3://data/my-model/",
        },
        "cache": {"volumeClaimTemplate": {"size": "1Gi", "storageClassName": ""}},
        "handlers": {"ping": "model:alive", "invocations": "model:named"},
        "healthCheck": {
            "periodSeconds": 2,
            "timeoutSeconds": 10,
            "payload": {"prompt": "x", "no_such_field": 1},
        },
    }
    made["spec"]["worker"] |= {
        "serviceAccountName": ACCOUNT,
        "env": [
            ONE_PROCESS,
            {"name": "HF_ENDPOINT", "value": hub.url},
            {"name": "AWS_ENDPOINT_URL", "value": s3["AWS_ENDPOINT_URL"]},
        ],
        "envFrom": [{"secretRef": {"name": "bucket"}}],
    }
    return made


@pytest.fixture(scope="module")
def hub(host: str) -> Iterator[Hub]:
    with serve_hub(host, CACHE / "models/toy-llama", TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def s3(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("s3")
    with bucket(host, folder, "data", {"my-model/model.py": SCRIPT}) as environment:
        yield environment


@pytest.fixture(scope="module")
def cache(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the volume to which the endpoint's claim will be bound."""
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o777)
    made = volume(cluster, folder)
    delete = ("delete", "pv", made["metadata"]["name"], "--ignore-not-found")
    cluster.kubectl(*delete, "--timeout=60s")  # left by an interrupted run
    cluster.apply(made)
    yield folder
    cluster.kubectl(*delete, "--wait=false")


@dataclass(frozen=True)
class Start:
    """``rejected``: the first False ``ConfigurationResolved``; ``messages``: those of ``Available``."""

    rejected: dict[str, Any]
    messages: list[str]


@pytest.fixture(scope="module")
def start(cluster: Cluster, hub: Hub, s3: dict[str, str], cache: Path) -> Start:
    """The whole start of the endpoint, with a payload that is rejected and then corrected."""
    del cache
    keys = {name: value for name, value in s3.items() if name != "AWS_ENDPOINT_URL"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    cluster.apply(secret("hub", **{"its-token": TOKEN}), secret("bucket", **keys), account, endpoint(hub, s3))
    with cluster.watch_status(NAME, '.conditions[?(@.type=="Available")].message') as messages:
        rejected = eventually(
            lambda: cluster.condition(NAME, "ConfigurationResolved"), lambda c: c["status"] == "False", 120
        )
        cluster.change(NAME, healthCheck={"payload": None})
        eventually(lambda: any("Downloading (team/toy)" in line for line in messages), bool, 60)
        hub.weights.set()
        ready = eventually(
            lambda: cluster.condition(NAME, "Ready"),
            lambda c: c["status"] == "True" or c["reason"] == "CrashLooping",
            240,
        )
        assert ready["status"] == "True", ready["message"]
    return Start(rejected, messages)


@pytest.fixture(scope="module")
def pod(cluster: Cluster, start: Start) -> str:
    assert start
    (worker,) = cluster.workers(NAME)
    return str(worker["metadata"]["name"])


@pytest.fixture(scope="module")
def workers(cluster: Cluster, pod: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}-workers", 8080) as base:
        yield base


@pytest.fixture(scope="module")
def frontend(cluster: Cluster, pod: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}", 8000) as base:
        yield base


def test_a_rejected_payload_is_corrected_without_a_restart(cluster: Cluster, start: Start, pod: str) -> None:
    assert start.rejected["reason"] == "InvalidPayload"
    assert "no_such_field" in start.rejected["message"]
    assert f"Pod {pod} serves no requests until its configuration is valid." in start.rejected["message"]
    assert restarts(cluster) == 0


def test_the_condition_shows_the_stages_of_the_start(start: Start, pod: str) -> None:
    stage = re.compile(
        rf"0 of 1 replica is ready \(minimum: 1\)\. Pod {pod} is starting: stage "
        r"(\w+(?: \(.*\))?) since \d\d:\d\d:\d\d UTC\. "
        r"It must start within 7200 s \(worker\.startupTimeoutSeconds\)\."
    )
    steps = list(dict.fromkeys(match[1] for line in start.messages if (match := stage.fullmatch(line))))
    # Earlier steps are the data of the bucket and the rejected payload.
    stages = list(dict.fromkeys(step.split()[0] for step in steps[steps.index("Downloading (team/toy)") :]))
    assert len(stages) >= 3, steps
    assert "Warming" in stages, steps
    assert stages == [name for name in STAGES if name in stages], "in their order"
    assert start.messages[-1] == "1 of 1 replica is ready."


def test_secrets_appear_only_in_the_environment_of_the_worker(cluster: Cluster, pod: str) -> None:
    script = "import os; print(os.environ['HF_TOKEN'], os.environ['AWS_SECRET_ACCESS_KEY'])"
    assert cluster.python(pod, script).split() == [TOKEN, SECRET_KEY]
    report = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9091/status').read().decode())"
    kinds = "vep,pods,configmaps,controllerrevisions,deployments,replicasets,events,dynamoworkermetadatas"
    everything = {
        "objects": cluster.kubectl("get", kinds, "-o", "yaml"),
        "report": cluster.python(pod, report),
        "worker's log": cluster.kubectl("logs", pod),
        "frontend's log": cluster.kubectl("logs", f"deployment/{NAME}-frontend"),
        "operator's log": cluster.kubectl("logs", "-n", SYSTEM, "deployment/vllmendpoint-operator"),
    }
    for where, text in everything.items():
        assert len(text) > 100, where
        assert TOKEN not in text, where
        assert SECRET_KEY not in text, where


def test_the_engine_uses_its_config_file(cluster: Cluster, pod: str) -> None:
    assert f"seed={SEED}," in cluster.kubectl("logs", pod)


def test_the_model_is_cached_on_the_claim_of_the_endpoint(cluster: Cluster, pod: str, cache: Path) -> None:
    (model,) = cache.glob(f"hub/models--team--toy/snapshots/{REVISION}/model.safetensors")
    assert model.read_bytes() == (CACHE / "models/toy-llama/model.safetensors").read_bytes()
    claim = cluster.get("pvc", f"{NAME}-cache")
    assert claim["status"]["phase"] == "Bound"
    assert [owner["name"] for owner in claim["metadata"]["ownerReferences"]] == [NAME]


def test_the_worker_uses_the_named_service_account_and_none_is_created(cluster: Cluster, pod: str) -> None:
    assert cluster.get("pod", pod)["spec"]["serviceAccountName"] == ACCOUNT
    accounts = cluster.kubectl("get", "serviceaccounts", "-o", "name").split()
    assert sorted(accounts) == [
        f"serviceaccount/{name}" for name in sorted(["default", ACCOUNT, f"{NAME}-frontend"])
    ]
    # The worker registered with Dynamo under that account.
    assert cluster.kubectl("get", "dynamoworkermetadatas", "-o", "name").count(pod) == 1


def test_the_named_handlers_of_a_script_in_the_bucket_serve_requests(
    cluster: Cluster, pod: str, workers: str
) -> None:
    assert cluster.endpoint(NAME)["status"]["handlers"] == {
        "scriptDigest": script_digest(SCRIPT.encode()),
        "ping": {"source": "Spec", "handler": "model:alive"},
        "invocations": {"source": "Spec", "handler": "model:named"},
    }
    assert post(f"{workers}/invocations", {}) == (200, '"the named handler"')
    assert json.loads(post(f"{workers}/ping", {})[1]) == {"status": "alive"}


def test_an_unexpected_answer_sets_generating_to_false(cluster: Cluster, pod: str) -> None:
    payload = {"prompt": "The sky is", "max_tokens": 4, "temperature": 0}
    expected = {"regex": "no model writes this"}
    cluster.change(NAME, healthCheck={"payload": payload, "expect": expected, "timeoutSeconds": 5})
    found = eventually(lambda: cluster.condition(NAME, "Generating"), lambda c: c["status"] == "False", 30)
    assert found["reason"] == "UnexpectedAnswer"
    assert pod in found["message"]
    eventually(lambda: ready(cluster, pod), lambda status: status == "False", 10)
    cluster.change(NAME, healthCheck={"expect": {"regex": "(?s)^.+$"}})
    cluster.wait_ready(NAME, 30)


def test_mode_observe_reports_a_stall_and_the_worker_stays_ready(
    cluster: Cluster, pod: str, frontend: str
) -> None:
    cluster.change(NAME, healthCheck={"mode": "Observe", "payload": None, "expect": None})
    eventually(lambda: chat(frontend, NAME, "Hi")[0], lambda code: code == 200, 30)
    cluster.wait_ready(NAME, 30)
    cluster.signal_engine(pod, "SIGSTOP")
    try:
        found = eventually(
            lambda: cluster.condition(NAME, "Generating"), lambda c: c["status"] == "False", 30
        )
        assert found["reason"] == "EngineStalled"
        assert cluster.condition(NAME, "Ready")["reason"] == "EngineStalled"
        # The worker returns the request immediately, and there is no other worker.
        assert chat(frontend, NAME, "Hi", seconds=30)[0] == 503
        assert ready(cluster, pod) == "True"
        assert cluster.condition(NAME, "Available")["status"] == "True"
        slices = cluster.get("endpointslices", "-l", f"kubernetes.io/service-name={NAME}-workers")["items"]
        assert [end["conditions"]["ready"] for each in slices for end in each["endpoints"]] == [True]
    finally:
        cluster.signal_engine(pod, "SIGCONT")
    cluster.wait_ready(NAME, 60)


def test_no_object_changes_while_paused_and_the_frontend_is_deleted_afterwards(
    cluster: Cluster, pod: str, workers: str
) -> None:
    def frontends() -> list[str]:
        kinds = "deployments,services,serviceaccounts,networkpolicies,rolebindings,pods"
        selector = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=frontend"
        return cluster.kubectl("get", kinds, "-o", "name", "-l", selector).split()

    before = frontends()
    assert len(before) == 6, before
    cluster.change(NAME, paused=True, frontend={"mode": "None"})
    found = eventually(lambda: cluster.condition(NAME, "UpToDate"), lambda c: c["status"] == "False", 10)
    assert found["reason"] == "Paused"
    assert cluster.endpoint(NAME)["status"]["observedGeneration"] == found["observedGeneration"]
    assert frontends() == before
    cluster.change(NAME, paused=None)
    eventually(frontends, lambda left: not left, 60)
    # Workers check their options against the mode of the frontend, so they are replaced.
    eventually(
        lambda: [worker["metadata"]["name"] for worker in cluster.workers(NAME)],
        lambda found: len(found) == 1 and found != [pod],
        300,
    )
    cluster.wait_ready(NAME, 300)

    status = cluster.endpoint(NAME)["status"]
    assert status["url"] == f"http://{NAME}-workers.{cluster.namespace}.svc:8080/v1"
    script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], b'{}').read().decode())"
    (worker,) = cluster.workers(NAME)
    assert (
        cluster.python(worker["metadata"]["name"], script, status["invocationsUrl"]).strip()
        == '"the named handler"'
    )
    assert restarts(cluster) == 0


def test_deleting_the_endpoint_deletes_its_claim_and_keeps_the_objects_of_users(
    cluster: Cluster, pod: str
) -> None:
    cluster.kubectl("delete", "vep", NAME, "--wait")
    eventually(lambda: cluster.kubectl("get", "pvc", f"{NAME}-cache", check=False), is_not_found, 60)
    assert not is_not_found(cluster.kubectl("get", "serviceaccount", ACCOUNT, check=False))
    assert not is_not_found(cluster.kubectl("get", "secret", "hub", "bucket", check=False))


def is_not_found(output: str) -> bool:
    return "NotFound" in output


def restarts(cluster: Cluster) -> int:
    (worker,) = cluster.workers(NAME)
    return int(worker["status"]["containerStatuses"][0]["restartCount"])


def ready(cluster: Cluster, pod: str) -> str:
    conditions = cluster.get("pod", pod)["status"]["conditions"]
    return next(str(each["status"]) for each in conditions if each["type"] == "Ready")
