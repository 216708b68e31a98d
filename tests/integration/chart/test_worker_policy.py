"""What a worker may publish to Dynamo: its own pod's metadata, and in it its own endpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_server import BIN
from tests.integration.chart.installed_chart import Cluster, endpoint, operating, run
from tests.integration.polling import until

OWN_POD = "A worker may write only the DynamoWorkerMetadata that has the name of its own pod."
OWN_ENDPOINT = "A worker may publish only in the Dynamo namespace of its own endpoint."
LONG = "e" * 40
"""As long as a name may be: its pods' names are cut, and so is its Dynamo namespace."""
WIDE = "n" * 63

Write = Callable[..., str]


@pytest.fixture(scope="module")
def pods(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``namespace/endpoint`` to the name of a worker pod; workers of `own` have an account of the user's."""
    installed.kubectl("create", "namespace", WIDE)
    installed.kubectl("create", "serviceaccount", "of-the-user", "-n", "a")
    found = {}
    with operating(installed, "ops", tmp_path_factory.mktemp("operator")):
        for namespace, name in (("a", "tiny"), ("a", "own"), ("a", LONG), (WIDE, LONG)):
            worker = {"serviceAccountName": "of-the-user"} if name == "own" else {}
            installed.kubectl("apply", "-f", "-", text=endpoint(namespace, name, worker=worker))
        for namespace, name in (("a", "tiny"), ("a", "own"), ("a", LONG), (WIDE, LONG)):
            labels = f"app.kubernetes.io/component=worker,app.kubernetes.io/instance={name}"
            made = until(lambda n=namespace, x=labels: installed.names("pods", "-n", n, "-l", x), name, 40)
            found[f"{namespace}/{name}"] = made.pop().removeprefix("pod/")
    return found


@pytest.fixture
def write(installed: Cluster, tmp_path: Path) -> Write:
    server = installed.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    none = tmp_path / "none"
    none.touch()

    def with_token(namespace: str, name: str, token: str, *verb: str, **data: Any) -> str:
        body = {
            "apiVersion": "nvidia.com/v1alpha1",
            "kind": "DynamoWorkerMetadata",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"data": {"endpoints": {}, "model_cards": {}, **data}},
        }
        done = run(
            BIN / "kubectl",
            f"--kubeconfig={none}",
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
    """As Dynamo keeps one: by a path whose parts are in it again."""
    return {
        f"{namespace}/backend/generate/2a": {"type": "Endpoint", "namespace": namespace, "instance_id": 42}
    }


@pytest.mark.parametrize(("name", "account"), [("tiny", "tiny-workers"), ("own", "of-the-user")])
def test_a_worker_writes_its_own_metadata_only(
    installed: Cluster, pods: dict[str, str], write: Write, name: str, account: str
) -> None:
    pod = pods[f"a/{name}"]
    own, loose = token(installed, "a", account, pod), token(installed, "a", account)
    # The policy reaches the API server's caches a moment after it was made.
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    assert OWN_POD in write("a", pod, loose)
    assert OWN_POD in write("a", pods["a/" + LONG], own)
    assert "serverside-applied" in write("a", pod, own)
    # A worker of the version before; of a revision; of a revision and a model.
    for dynamo in (f"a-{name}", f"a-{name}_-0123456789", f"a-{name}_-0123456789-abcdef0123"):
        data = {"endpoints": instance(dynamo), "model_cards": instance(dynamo), "later": {"thing": 1}}
        data["event_channels"] = event(dynamo, dynamo)
        assert "serverside-applied" in write("a", pod, own, **data)
    assert installed.get("dwm", pod, "-n", "a")["spec"]["data"]["endpoints"] == data["endpoints"]
    # Nor by taking another's away: not even its own, since the pod's end takes that.
    assert "forbidden" in write("a", pod, own, "delete")


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
        "another's",
        "one of two",
        "one whose name begins alike",
        "no suffix",
        "three suffixes",
        "none",
        "a pattern",
        "another's events",
        "another's component",
    ],
)
def test_a_worker_publishes_no_other_endpoint(
    installed: Cluster, pods: dict[str, str], write: Write, kind: str, data: dict[str, Any]
) -> None:
    own = token(installed, "a", "tiny-workers", pods["a/tiny"])
    until(lambda: OWN_POD in write("a", "another", own), "the policy", 60)
    assert OWN_ENDPOINT in write("a", pods["a/tiny"], own, **{kind: data})


def test_long_names_are_known_by_what_is_left_of_them(
    installed: Cluster, pods: dict[str, str], write: Write
) -> None:
    for namespace in ("a", WIDE):
        pod = pods[f"{namespace}/{LONG}"]
        env = "-".join(
            item["value"]
            for item in installed.get("pod", pod, "-n", namespace)["spec"]["containers"][0]["env"]
            if item["name"] in ("DYN_NAMESPACE", "DYN_NAMESPACE_WORKER_SUFFIX")
        )
        own = token(installed, namespace, f"{LONG}-workers", pod)
        assert "serverside-applied" in write(namespace, pod, own, endpoints=instance(env))
        assert OWN_ENDPOINT in write(namespace, pod, own, endpoints=instance(f"{namespace}-other"))
        assert OWN_ENDPOINT in write(namespace, pod, own, endpoints=instance(env + "x"))
