"""A worker can publish to Dynamo only the metadata of its own pod, and only its own endpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.chart.installed_chart import Cluster, endpoint, run, running_operator
from tests.integration.polling import until
from tests.project_cache import BIN

OWN_POD = "A worker may write only the DynamoWorkerMetadata that has the name of its own pod."
OWN_ENDPOINT = "A worker may publish only in the Dynamo namespace of its own endpoint."
LONG = "e" * 40
"""An endpoint name of maximum length: the names of its pods and of its Dynamo namespace are truncated."""
LONG_NAMESPACE = "n" * 63

Write = Callable[..., str]


@pytest.fixture(scope="module")
def pods(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of pods: ``namespace/endpoint`` -> worker, ``namespace/endpoint frontend`` -> its frontend.

    Workers of `own` use a service account of the user.
    """
    installed.kubectl("create", "namespace", LONG_NAMESPACE)
    installed.kubectl("create", "serviceaccount", "of-the-user", "-n", "a")
    found = {}
    with running_operator(installed, "ops", tmp_path_factory.mktemp("operator")):
        for namespace, name in (("a", "tiny"), ("a", "own"), ("a", LONG), (LONG_NAMESPACE, LONG)):
            worker = {"serviceAccountName": "of-the-user"} if name == "own" else {}
            text = endpoint(namespace, name, worker=worker, prefill={})
            installed.kubectl("apply", "-f", "-", text=text)
        for namespace, name in (("a", "tiny"), ("a", "own"), ("a", LONG), (LONG_NAMESPACE, LONG)):
            for component, suffix in (("worker", ""), ("prefill", " prefill"), ("frontend", " frontend")):
                labels = f"app.kubernetes.io/component={component},app.kubernetes.io/instance={name}"
                names = until(
                    lambda n=namespace, x=labels: installed.names("pods", "-n", n, "-l", x), name, 40
                )
                found[f"{namespace}/{name}{suffix}"] = names.pop().removeprefix("pod/")
    return found


@pytest.fixture
def write(installed: Cluster, tmp_path: Path) -> Write:
    server = installed.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    empty = tmp_path / "empty"
    empty.touch()

    def with_token(namespace: str, name: str, token: str, *verb: str, **data: Any) -> str:
        body = {
            "apiVersion": "nvidia.com/v1alpha1",
            "kind": "DynamoWorkerMetadata",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"data": {"endpoints": {}, "model_cards": {}, **data}},
        }
        done = run(
            BIN / "kubectl",
            f"--kubeconfig={empty}",
            f"--server={server}",
            "--insecure-skip-tls-verify",
            f"--token={token}",
            *(verb or ("apply", "--server-side", "--force-conflicts")),
            "-f",
            "-",
            text=json.dumps(body),
            check=False,
        )
        return done.stdout + done.stderr

    return with_token


def token(cluster: Cluster, namespace: str, account: str, pod: str = "") -> str:
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}") if pod else ()
    return cluster.kubectl("create", "token", account, "-n", namespace, *bound)


def event(namespace: str, scope: str) -> dict[str, Any]:
    endpoint = {"namespace": scope, "component": "backend", "name": "generate"}
    found: dict[str, Any] = {"type": "EventChannel", "namespace": namespace, "topic": "kv_metrics"}
    return {"an/event": {**found, "scope": {"kind": "endpoint", "endpoint": endpoint}}}


def instance(namespace: str) -> dict[str, Any]:
    """An instance as Dynamo stores it: the path contains its fields."""
    return {
        f"{namespace}/backend/generate/2a": {"type": "Endpoint", "namespace": namespace, "instance_id": 42}
    }


@pytest.mark.parametrize(("name", "account"), [("tiny", "tiny-workers"), ("own", "of-the-user")])
def test_a_worker_can_write_only_its_own_metadata(
    installed: Cluster, pods: dict[str, str], write: Write, name: str, account: str
) -> None:
    pod = pods[f"a/{name}"]
    own, unbound = token(installed, "a", account, pod), token(installed, "a", account)
    # The API server loads a policy a moment after its creation.
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    assert OWN_POD in write("a", pod, unbound)
    assert OWN_POD in write("a", pods["a/" + LONG], own)
    assert "serverside-applied" in write("a", pod, own)
    # The Dynamo namespaces of an earlier version, of a revision, and of a revision and a model.
    for dynamo in (f"a-{name}", f"a-{name}_-0123456789", f"a-{name}_-0123456789-abcdef0123"):
        data = {"endpoints": instance(dynamo), "model_cards": instance(dynamo), "later": {"thing": 1}}
        data["event_channels"] = event(dynamo, dynamo)
        assert "serverside-applied" in write("a", pod, own, **data)
    assert installed.get("dwm", pod, "-n", "a")["spec"]["data"]["endpoints"] == data["endpoints"]
    # A worker cannot delete metadata, not even its own: it is deleted with the pod.
    assert "forbidden" in write("a", pod, own, "delete")


def test_a_prefill_worker_can_write_only_its_own_metadata(
    installed: Cluster, pods: dict[str, str], write: Write
) -> None:
    """It shares the account and the Dynamo namespace of the decode workers."""
    pod = pods["a/tiny prefill"]
    own = token(installed, "a", "tiny-workers", pod)
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    assert OWN_POD in write("a", pods["a/tiny"], own)
    dynamo = "a-tiny_-0123456789-abcdef0123"
    assert "serverside-applied" in write(
        "a", pod, own, endpoints=instance(dynamo), model_cards=instance(dynamo)
    )
    for other in ("a-other_-0123456789", "b-tiny_-0123456789", ""):
        assert OWN_ENDPOINT in write("a", pod, own, endpoints=instance(other))


@pytest.mark.parametrize("kind", ["endpoints", "model_cards", "event_channels"])
@pytest.mark.parametrize(
    "data",
    [
        instance("a-other"),
        instance("a-tiny") | instance("b-tiny"),
        instance("a-tiny-v2_-0123456789"),
        instance("a-tiny_"),
        instance("a-tiny_-0123456789-abcdef0123-0123456789"),
        instance(""),
        instance(".*"),
        event("a-tiny", "a-other"),
        {"an/event": {"namespace": "a-tiny", "scope": {"kind": "component", "namespace": "a-other"}}},
    ],
    ids=[
        "another endpoint",
        "one of two",
        "the same prefix",
        "no suffix",
        "three suffixes",
        "none",
        "a pattern",
        "events of another endpoint",
        "another component",
    ],
)
def test_a_worker_cannot_publish_another_endpoint(
    installed: Cluster, pods: dict[str, str], write: Write, kind: str, data: dict[str, Any]
) -> None:
    own = token(installed, "a", "tiny-workers", pods["a/tiny"])
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    assert OWN_ENDPOINT in write("a", pods["a/tiny"], own, **{kind: data})


@pytest.mark.parametrize("role", ["", " prefill"])
def test_a_worker_with_a_truncated_name_can_publish_only_its_own_endpoint(
    installed: Cluster, pods: dict[str, str], write: Write, role: str
) -> None:
    for namespace in ("a", LONG_NAMESPACE):
        pod = pods[f"{namespace}/{LONG}{role}"]
        env = "-".join(
            item["value"]
            for item in installed.get("pod", pod, "-n", namespace)["spec"]["containers"][0]["env"]
            if item["name"] in ("DYN_NAMESPACE", "DYN_NAMESPACE_WORKER_SUFFIX")
        )
        own = token(installed, namespace, f"{LONG}-workers", pod)
        assert "serverside-applied" in write(namespace, pod, own, endpoints=instance(env))
        assert OWN_ENDPOINT in write(namespace, pod, own, endpoints=instance(f"{namespace}-other"))
        assert OWN_ENDPOINT in write(namespace, pod, own, endpoints=instance(env + "x"))


@pytest.mark.parametrize("name", ["tiny", LONG])
def test_a_frontend_can_publish_event_channels_of_its_own_endpoint_only(
    installed: Cluster, pods: dict[str, str], write: Write, name: str
) -> None:
    """Frontends exchange their requests in flight and their sessions."""
    pod = pods[f"a/{name} frontend"]
    own = token(installed, "a", f"{name}-frontend", pod)
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    channel = event(f"a-{name}_-0123456789-abcdef0123", f"a-{name}_-0123456789-abcdef0123")
    assert "serverside-applied" in write("a", pod, own, event_channels=channel)
    assert OWN_POD in write("a", pods[f"a/{name}"], own, event_channels=channel)
    for other in ("a-other_-0123456789", "b-tiny_-0123456789", ""):
        assert OWN_ENDPOINT in write("a", pod, own, event_channels=event(other, other))
