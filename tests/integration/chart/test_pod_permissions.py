"""Which pods a user who can create VLLMEndpoints, but not pods, gets through each field of a spec."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.chart.installed_chart import Cluster, endpoint, readme_object, run
from tests.integration.polling import until
from tests.project_cache import BIN

NAME = "limited-user"
KIND = "vllmendpoints.serving.vllmendpoint.dev"
CLOSED = "Only users who may create pods in this namespace may set or change this field"
HELD = "may change these fields while the endpoint has a Secret or an identity"
CLAIM = "Only users who may create pods in this namespace, or use the PersistentVolumeClaim"


class LimitedUser:
    """A user who can create and change VLLMEndpoints in one namespace, but not create pods."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def kubectl(self, *arguments: str, text: str = "", who: str = NAME) -> str:
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

    def replace_as_admin(self, **spec: Any) -> None:
        """Create or replace the endpoint as the administrator."""
        self.cluster.kubectl("delete", KIND, "tiny", "-n", self.namespace, "--ignore-not-found")
        self.cluster.kubectl("create", "-f", "-", text=endpoint(self.namespace, **spec))

    def grant(self, name: str, *rule: str) -> None:
        self.cluster.kubectl("create", "role", name, *rule, "-n", self.namespace)
        self.bind(name)

    def bind(self, role: str) -> None:
        self.cluster.kubectl(
            "create", "rolebinding", role, f"--role={role}", f"--user={NAME}", "-n", self.namespace
        )


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return iter(range(100))


@pytest.fixture
def user(installed: Cluster, numbers: Iterator[int]) -> LimitedUser:
    namespace = f"{NAME}-{next(numbers)}"
    installed.kubectl("create", "namespace", namespace)
    user = LimitedUser(installed, namespace)
    user.grant("owner", "--verb=create,get,patch,update", f"--resource={KIND}")
    until(lambda: CLOSED in user.create(worker={"serviceAccountName": "mine"}), "policy and role", 60)
    return user


def pod_template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


def main(**fields: Any) -> dict[str, Any]:
    return pod_template(containers=[{"name": "main", **fields}])


SECRET = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "another-users", "key": "k"}}}
MODEL = "file:///models/tiny"
FORBIDDEN: dict[str, dict[str, Any]] = {
    "another account": {"worker": {"serviceAccountName": "mine"}},
    "another account, by the template": {"worker": pod_template(serviceAccountName="mine")},
    "host network": {"worker": pod_template(hostNetwork=True)},
    "host path": {"worker": pod_template(volumes=[{"name": "h", "hostPath": {"path": "/"}}])},
    "privileged": {"worker": main(securityContext={"privileged": True})},
    "a Secret as a volume": {"worker": pod_template(volumes=[{"name": "s", "secret": {"secretName": "s"}}])},
    "a Secret in the environment, by the template": {"worker": main(env=[SECRET])},
    "a Secret in the environment": {"worker": {"env": [SECRET]}},
    "a Secret as the environment": {"worker": {"envFrom": [{"secretRef": {"name": "another-users"}}]}},
    "a variable that loads code": {"worker": {"env": [{"name": "PYTHONPATH", "value": "/cache"}]}},
    "an image": {"worker": {"image": "registry.example/mine:1"}},
    "an empty template": {"worker": {"podTemplate": {}}},
    "the frontend's template": {"frontend": pod_template(hostNetwork=True)},
    "the template of prefill workers": {"prefill": pod_template(hostNetwork=True)},
    "a handler": {"handlers": {"ping": "model:f"}},
    "a script": {"handlers": {"script": {"inline": "import os"}, "ping": "model:f"}},
    "a script of a ConfigMap": {"handlers": {"script": {"configMapKeyRef": {"name": "c"}}}},
    "a token": {"model": {"uri": MODEL, "tokenSecretRef": {"name": "s"}}},
    "model data, which has a script": {"model": {"uri": MODEL, "artifactsUri": "s3://mine/here/"}},
}


def test_fields_that_control_a_pod_require_the_permission_to_create_pods(user: LimitedUser) -> None:
    for way, spec in FORBIDDEN.items():
        assert CLOSED in user.create(**spec), way
    for spec in (
        {"model": {"uri": "pvc://models/llama"}},
        {"cache": {"persistentVolumeClaim": {"claimName": "models"}}},
    ):
        assert CLAIM in user.create(**spec), spec


def test_serving_a_model_requires_no_permission_for_pods(user: LimitedUser) -> None:
    assert "created" in user.create()
    assert "created" in user.create(
        model={"uri": "hf://organisation/model"},
        engine={"args": ["--seed", "1"], "config": {"inline": {"max-model-len": 64}}},
        prefill={"replicas": 2, "resources": {"limits": {"cpu": 1}}, "engine": {"args": ["--seed", "1"]}},
        cache={"volumeClaimTemplate": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
        worker={
            "sharedMemorySize": "1Gi",
            "imagePullSecrets": [{"name": "r"}],
            "resources": {"limits": {"cpu": 1}},
        },
        frontend={"replicas": 2},
        healthCheck={"level": "Standard"},
        strategy={"rollingUpdate": {"maxUnavailable": 1}},
    )


def test_a_restricted_field_of_another_user_stays_and_other_fields_can_change(user: LimitedUser) -> None:
    user.replace_as_admin(worker={"serviceAccountName": "another-users"})
    assert "patched" in user.patch(replicas=2, healthCheck={"level": "Standard"})
    assert f"worker.serviceAccountName: {CLOSED}" in user.patch(worker={"serviceAccountName": "other"})
    assert "patched" in user.patch(worker={"serviceAccountName": None})
    assert CLOSED in user.patch(worker={"serviceAccountName": "another-users"})


@pytest.mark.parametrize(
    "held",
    [
        {"worker": {"serviceAccountName": "another-users"}},
        {"worker": {"env": [SECRET]}},
        {"worker": {"envFrom": [{"secretRef": {"name": "s"}}]}},
        {"worker": pod_template(volumes=[{"name": "s", "secret": {"secretName": "s"}}])},
        {"prefill": pod_template(volumes=[{"name": "s", "secret": {"secretName": "s"}}])},
        {"model": {"uri": MODEL, "tokenSecretRef": {"name": "s"}}},
    ],
    ids=["account", "env", "envFrom", "podTemplate", "prefill.podTemplate", "tokenSecretRef"],
)
def test_a_limited_user_cannot_run_code_next_to_a_secret(user: LimitedUser, held: dict[str, Any]) -> None:
    """Otherwise a model of the user with --trust-remote-code could read the Secrets of another user."""
    user.replace_as_admin(**held)
    for change in (
        {"model": {"uri": "hf://user/model"}},
        {"engine": {"args": ["--trust-remote-code"]}},
        {"engine": {"config": {"inline": {"trust-remote-code": True}}}},
        {"prefill": {"engine": {"args": ["--trust-remote-code"]}}},
        {"cache": {"persistentVolumeClaim": {"claimName": "poisoned"}}},
    ):
        assert HELD in user.patch(**change), change
    assert "patched" in user.patch(replicas=2)
    # Without the Secret, the user can set any model.
    without = {name: dict.fromkeys(fields.keys() - {"uri"}) for name, fields in held.items()}
    without["model"] = {**without.get("model", {}), "uri": "hf://user/model"}
    assert "patched" in user.patch(**without, engine={"args": ["--trust-remote-code"]})


def test_an_image_of_another_user_restricts_no_other_field(user: LimitedUser) -> None:
    user.replace_as_admin(worker={"image": "registry.example/another-users:1"})
    assert "patched" in user.patch(engine={"args": ["--seed", "1"]})


def test_a_limited_user_can_name_only_permitted_claims(user: LimitedUser) -> None:
    user.cluster.kubectl("apply", "-n", user.namespace, "-f", "-", text=readme_object("Role"))
    user.bind("uses-models")
    model = {"uri": "pvc://models/llama"}
    until(lambda: "created" in user.create(model=model), "the role")
    cache = {"persistentVolumeClaim": {"claimName": "models"}}
    assert "created" in user.create(model=model, cache=cache)
    assert f"model.uri: {CLAIM} other, may name it" in user.create(
        model={"uri": "pvc://other/llama"}, cache=cache
    )
    output = user.create(model=model, cache={"persistentVolumeClaim": {"claimName": "other"}})
    assert f"cache.persistentVolumeClaim: {CLAIM} other, may name it" in output
    # The claim of model.uri can stay, but the user cannot mount it as the cache, which is writable.
    user.replace_as_admin(model={"uri": "pvc://other/llama"})
    assert "patched" in user.patch(replicas=2)
    assert "patched" in user.patch(model={"uri": "pvc://other/another"})
    assert CLAIM in user.patch(cache={"persistentVolumeClaim": {"claimName": "other"}})


def test_a_user_who_can_create_pods_can_set_every_field(user: LimitedUser) -> None:
    user.grant("pods", "--verb=create", "--resource=pods")
    until(lambda: "created" in user.create(worker={"serviceAccountName": "mine"}), "the role")
    for way, spec in FORBIDDEN.items():
        if way != "an empty template":
            output = user.create(**spec)
            assert "created" in output, (way, output)
    user.replace_as_admin(worker={"serviceAccountName": "another-users"})
    assert "patched" in user.patch(
        model={"uri": "pvc://any/model"}, cache={"persistentVolumeClaim": {"claimName": "any"}}
    )
