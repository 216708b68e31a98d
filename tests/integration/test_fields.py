"""Fields whose meaning the API server has a say in: what it refuses, what it takes, what becomes of it."""

import pytest
import yaml

MODEL = {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}


def refusal(api, **spec):
    body = {
        "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
        "kind": "VLLMEndpoint",
        "metadata": {"name": "e"},
        "spec": {"model": MODEL, **spec},
    }
    return api.kubectl("create", "--dry-run=server", "-f", "-", text=yaml.safe_dump(body), check=False)


TOKEN = {**MODEL, "tokenSecretRef": {"name": "hf", "key": "token"}}
REFUSED = [
    (
        {"model": TOKEN, "worker": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
        "model.tokenSecretRef: HF_TOKEN is set in worker.env too; remove one",
    ),
    ({"model": {**MODEL, "tokenSecretRef": {}}}, "spec.model.tokenSecretRef.name: Required value"),
]


@pytest.mark.parametrize(("spec", "told"), REFUSED, ids=[told[:40] for _, told in REFUSED])
def test_refused_with_a_sentence(api, spec, told):
    assert told in refusal(api, **spec)


@pytest.mark.parametrize(
    "spec", [{"model": TOKEN}, {"model": TOKEN, "worker": {"env": [{"name": "A", "value": "x"}]}}]
)
def test_accepted(api, spec):
    assert "created (server dry run)" in refusal(api, **spec)


def test_a_token_whose_secret_is_not_there(shared, space, api, until):
    """The operator reads no Secret: the kubelet tells, here played with its own words."""
    endpoint = space().create(model=TOKEN)
    (pod,) = until(endpoint.pods, "its pod")
    env = next(c["env"] for c in pod["spec"]["containers"] if c["name"] == "main")
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}} in env
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    endpoint.play(pod, ready=False, started=False, state={"waiting": waiting})
    found = endpoint.until("ResolvedRefs", "False", "SecretNotFound")
    assert (
        f'pod {pod["metadata"]["name"]} cannot start its container: secret "hf" not found' in found["message"]
    )
    endpoint.until("Ready", "False", "SecretNotFound")
    endpoint.serve()
    endpoint.until("Ready", "True")


def test_a_named_service_account(shared, space, api, until):
    """Missing, it is told; then used and bound, and the one that was made goes with its last pod."""
    endpoint = space().create()
    endpoint.serve()
    endpoint.until("Ready", "True")
    assert endpoint.child("ServiceAccount", "-workers")
    account = f"{endpoint.name}-mine"
    endpoint.patch(spec={"worker": {"serviceAccountName": account}})
    missing = endpoint.until("ResolvedRefs", "False", "ServiceAccountNotFound")
    assert (
        f"no ServiceAccount {account!r} in the namespace shared, so no pod can be made" in missing["message"]
    )
    api.create("ServiceAccount", "shared", account)
    pod = until(
        lambda: next((p for p in endpoint.pods() if p["spec"]["serviceAccountName"] == account), None),
        "a pod with that account",
        60,
    )
    endpoint.until("ResolvedRefs", "True")
    assert "deletionTimestamp" not in pod["metadata"]

    def bound():
        return [subject["name"] for subject in endpoint.child("RoleBinding", "-workers")["subjects"]]

    until(lambda: bound() == [account], bound)
    until(lambda: endpoint.child("ServiceAccount", "-workers") is None, "the account that was made is gone")
    assert endpoint.child("ServiceAccount", "-frontend")
    assert api.get("ServiceAccount", "shared", account)["metadata"].get("ownerReferences") is None
