"""A user who may create VLLMEndpoints and no pods: which pods they get, by every way that a spec has."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.api_server import BIN
from tests.integration.chart.installed_chart import Cluster, endpoint, readme, run
from tests.integration.polling import until

KIND = "vllmendpoints.serving.vllmendpoint.dev"
CLOSED = "Only users who may create pods in this namespace may set or change this field"
HELD = "may change these fields while the endpoint has a Secret or an identity"
CLAIM = "Only users who may create pods in this namespace, or use the PersistentVolumeClaim"


class User:
    """Bob, in a namespace of his own."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def kubectl(self, *arguments: str, text: str = "", who: str = "bob") -> str:
        command = (
            BIN / "kubectl",
            f"--kubeconfig={self.cluster.kubeconfig}",
            f"--as={who}",
            "-n",
            self.namespace,
        )
        done = run(*command, *arguments, text=text, check=False)
        return done.stdout + done.stderr

    def create(self, **spec: Any) -> str:
        return self.kubectl("create", "--dry-run=server", "-f", "-", text=endpoint(self.namespace, **spec))

    def patch(self, **spec: Any) -> str:
        return self.kubectl("patch", KIND, "tiny", "--type=merge", "-p", json.dumps({"spec": spec}))

    def given(self, **spec: Any) -> None:
        """Somebody else makes, or replaces, the endpoint."""
        self.cluster.kubectl("delete", KIND, "tiny", "-n", self.namespace, "--ignore-not-found")
        self.cluster.kubectl("create", "-f", "-", text=endpoint(self.namespace, **spec))

    def may(self, name: str, *rule: str) -> None:
        self.cluster.kubectl("create", "role", name, *rule, "-n", self.namespace)
        self.bound(name)

    def bound(self, role: str) -> None:
        self.cluster.kubectl(
            "create", "rolebinding", role, f"--role={role}", "--user=bob", "-n", self.namespace
        )


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return iter(range(100))


@pytest.fixture
def bob(installed: Cluster, numbers: Iterator[int]) -> User:
    namespace = f"bob-{next(numbers)}"
    installed.kubectl("create", "namespace", namespace)
    user = User(installed, namespace)
    user.may("owner", "--verb=create,get,patch,update", f"--resource={KIND}")
    until(lambda: CLOSED in user.create(worker={"serviceAccountName": "mine"}), "policy and role", 60)
    return user


def pod_template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


def main(**fields: Any) -> dict[str, Any]:
    return pod_template(containers=[{"name": "main", **fields}])


SECRET = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "anyones", "key": "k"}}}
MODEL = "file:///models/tiny"
REFUSED: dict[str, dict[str, Any]] = {
    "another account": {"worker": {"serviceAccountName": "mine"}},
    "another account, by the template": {"worker": pod_template(serviceAccountName="mine")},
    "host network": {"worker": pod_template(hostNetwork=True)},
    "host path": {"worker": pod_template(volumes=[{"name": "h", "hostPath": {"path": "/"}}])},
    "privileged": {"worker": main(securityContext={"privileged": True})},
    "a Secret as a volume": {"worker": pod_template(volumes=[{"name": "s", "secret": {"secretName": "s"}}])},
    "a Secret in the environment, by the template": {"worker": main(env=[SECRET])},
    "a Secret in the environment": {"worker": {"env": [SECRET]}},
    "a Secret as the environment": {"worker": {"envFrom": [{"secretRef": {"name": "anyones"}}]}},
    "a variable that loads code": {"worker": {"env": [{"name": "PYTHONPATH", "value": "/cache"}]}},
    "an image": {"worker": {"image": "registry.example/mine:1"}},
    "an empty template": {"worker": {"podTemplate": {}}},
    "the frontend's template": {"frontend": pod_template(hostNetwork=True)},
    "a handler": {"handlers": {"ping": "model:f"}},
    "a script": {"handlers": {"script": {"inline": "import os"}, "ping": "model:f"}},
    "a script of a ConfigMap": {"handlers": {"script": {"configMapKeyRef": {"name": "c"}}}},
    "a token": {"model": {"uri": MODEL, "tokenSecretRef": {"name": "s"}}},
    "model data, which has a script": {"model": {"uri": MODEL, "artifactsUri": "s3://mine/here/"}},
}


def test_what_makes_a_pod_of_ones_choice_is_closed(bob: User) -> None:
    for way, spec in REFUSED.items():
        assert CLOSED in bob.create(**spec), way
    for spec in (
        {"model": {"uri": "pvc://models/llama"}},
        {"cache": {"persistentVolumeClaim": {"claimName": "models"}}},
    ):
        assert CLAIM in bob.create(**spec), spec


def test_serving_a_model_is_open(bob: User) -> None:
    assert "created" in bob.create()
    assert "created" in bob.create(
        model={"uri": "hf://organisation/model"},
        engine={"args": ["--seed", "1"], "config": {"inline": {"max-model-len": 64}}},
        cache={"volumeClaimTemplate": {"size": "1Gi"}},
        worker={
            "sharedMemorySize": "1Gi",
            "imagePullSecrets": [{"name": "r"}],
            "resources": {"limits": {"cpu": 1}},
        },
        frontend={"replicas": 2},
        healthCheck={"level": "Standard"},
        strategy={"rollingUpdate": {"maxUnavailable": 1}},
    )


def test_what_somebody_else_has_set_stays_and_the_rest_may_change(bob: User) -> None:
    bob.given(worker={"serviceAccountName": "hers"})
    assert "patched" in bob.patch(replicas=2, healthCheck={"level": "Standard"})
    assert f"worker.serviceAccountName: {CLOSED}" in bob.patch(worker={"serviceAccountName": "other"})
    assert "patched" in bob.patch(worker={"serviceAccountName": None})
    assert CLOSED in bob.patch(worker={"serviceAccountName": "hers"})


@pytest.mark.parametrize(
    "held",
    [
        {"worker": {"serviceAccountName": "hers"}},
        {"worker": {"env": [SECRET]}},
        {"worker": {"envFrom": [{"secretRef": {"name": "s"}}]}},
        {"worker": pod_template(volumes=[{"name": "s", "secret": {"secretName": "s"}}])},
        {"model": {"uri": MODEL, "tokenSecretRef": {"name": "s"}}},
    ],
    ids=["account", "env", "envFrom", "podTemplate", "tokenSecretRef"],
)
def test_no_code_of_bobs_is_put_beside_a_secret(bob: User, held: dict[str, Any]) -> None:
    """Else a model of his own with --trust-remote-code reads what somebody else has put into the pod."""
    bob.given(**held)
    for change in (
        {"model": {"uri": "hf://bob/model"}},
        {"engine": {"args": ["--trust-remote-code"]}},
        {"engine": {"config": {"inline": {"trust-remote-code": True}}}},
        {"cache": {"persistentVolumeClaim": {"claimName": "poisoned"}}},
    ):
        assert HELD in bob.patch(**change), change
    assert "patched" in bob.patch(replicas=2)
    # Without the secret it is a model as any other.
    without = {name: dict.fromkeys(fields.keys() - {"uri"}) for name, fields in held.items()}
    without["model"] = {**without.get("model", {}), "uri": "hf://bob/model"}
    assert "patched" in bob.patch(**without, engine={"args": ["--trust-remote-code"]})


def test_an_image_of_hers_holds_nothing(bob: User) -> None:
    bob.given(worker={"image": "registry.example/hers:1"})
    assert "patched" in bob.patch(engine={"args": ["--seed", "1"]})


def test_claims_are_those_that_bob_may_use(bob: User) -> None:
    bob.cluster.kubectl("apply", "-n", bob.namespace, "-f", "-", text=readme("Role"))
    bob.bound("uses-models")
    model = {"uri": "pvc://models/llama"}
    until(lambda: "created" in bob.create(model=model), "the role")
    cache = {"persistentVolumeClaim": {"claimName": "models"}}
    assert "created" in bob.create(model=model, cache=cache)
    assert f"model.uri: {CLAIM} other, may name it" in bob.create(
        model={"uri": "pvc://other/llama"}, cache=cache
    )
    told = bob.create(model=model, cache={"persistentVolumeClaim": {"claimName": "other"}})
    assert f"cache.persistentVolumeClaim: {CLAIM} other, may name it" in told
    # What stands may stay, but a claim that is read is not one that is written.
    bob.given(model={"uri": "pvc://other/llama"})
    assert "patched" in bob.patch(replicas=2)
    assert "patched" in bob.patch(model={"uri": "pvc://other/another"})
    assert CLAIM in bob.patch(cache={"persistentVolumeClaim": {"claimName": "other"}})


def test_who_may_create_pods_may_do_it_by_an_endpoint(bob: User) -> None:
    bob.may("pods", "--verb=create", "--resource=pods")
    until(lambda: "created" in bob.create(worker={"serviceAccountName": "mine"}), "the role")
    for way, spec in REFUSED.items():
        if way != "an empty template":
            said = bob.create(**spec)
            assert "created" in said, (way, said)
    bob.given(worker={"serviceAccountName": "hers"})
    assert "patched" in bob.patch(
        model={"uri": "pvc://any/model"}, cache={"persistentVolumeClaim": {"claimName": "any"}}
    )
