"""``ResolvedRefs``: missing claims, and missing objects that the kubelet or the ReplicaSet reports."""

import pytest

from tests.unit.operator.status.cluster_states import replica_failure

MISSING_ACCOUNT = (
    'pods "smollm-workers-x-" is forbidden: error looking up service account team-a/mine: '
    'serviceaccount "mine" not found'
)


def test_the_first_missing_claim_is_named(make_endpoint, make_status, states, message_of):
    cache = {"persistentVolumeClaim": {"claimName": "models"}}
    endpoint = make_endpoint(model={"uri": "pvc://weights/m"}, cache=cache)
    found = make_status(endpoint, claims=frozenset({"models"}))
    assert states(found)["ResolvedRefs"] == ("False", "ClaimNotFound")
    assert message_of(found, "ResolvedRefs") == (
        "The PersistentVolumeClaim 'weights' does not exist in the namespace team-a. "
        "Create it, or reference another one in model.uri or cache."
    )
    complete = make_status(endpoint, claims=frozenset({"models", "weights"}))
    assert states(complete)["ResolvedRefs"][0] == "True"


@pytest.fixture
def pod_without_secret(make_pod):
    """A pod, and the kubelet's message that its Secret does not exist."""
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    return make_pod(
        "w", ready=False, phase="Pending", container={"state": {"waiting": waiting}, "started": False}
    )


def test_a_missing_secret_is_read_from_the_pods_status(
    make_endpoint, make_status, pod_without_secret, states
):
    found = states(make_status(make_endpoint(), pod_without_secret))
    assert found["ResolvedRefs"] == ("False", "SecretNotFound")
    assert found["Ready"] == ("False", "SecretNotFound")


def test_a_missing_secret_of_an_earlier_revision_leaves_the_current_one_unknown(
    make_endpoint, make_status, children_with, pod_without_secret, finding
):
    endpoint = make_endpoint()
    children = children_with(endpoint, observedGeneration=0)
    status, reason, message = finding(
        make_status(endpoint, pod_without_secret, children=children), "ResolvedRefs"
    )
    assert (status, reason) == ("Unknown", "Pending")
    assert message.startswith('Pod w cannot start its container: secret "hf" not found.')
    assert message.endswith(" This pod is of an earlier revision. No pod of the current revision exists yet.")


@pytest.mark.parametrize(
    ("account", "rejection", "reason"),
    [
        ("mine", MISSING_ACCOUNT, "ServiceAccountNotFound"),
        ("mine", 'pods "x" is forbidden: exceeded quota: q', "Resolved"),
        ("other", MISSING_ACCOUNT, "Resolved"),
        (None, MISSING_ACCOUNT, "Resolved"),
    ],
)
def test_a_missing_service_account_is_read_from_the_replica_sets_failure(
    make_endpoint, children_with, make_status, condition, account, rejection, reason
):
    endpoint = make_endpoint(worker={"serviceAccountName": account} if account else {})
    children = children_with(
        endpoint,
        replicas=1,
        updatedReplicas=1,
        availableReplicas=1,
        conditions=[replica_failure(rejection)],
    )
    found = condition(make_status(endpoint, children=children), "ResolvedRefs")
    assert found.reason == reason
    if reason != "Resolved":
        assert found.message == (
            "The ServiceAccount 'mine' does not exist in the namespace team-a, so Kubernetes cannot create "
            "worker pods. Create it, or change worker.serviceAccountName."
        )
