"""References that only others know of: what the kubelet and the ReplicaSet said of them."""

import pytest

NOT_THERE = (
    'pods "smollm-workers-x-" is forbidden: error looking up service account team-a/mine: '
    'serviceaccount "mine" not found'
)


@pytest.mark.parametrize(
    ("named", "message", "reason"),
    [
        ("mine", NOT_THERE, "ServiceAccountNotFound"),
        ("mine", 'pods "x" is forbidden: exceeded quota: q', "Resolved"),
        ("other", NOT_THERE, "Resolved"),
        (None, NOT_THERE, "Resolved"),
    ],
)
def test_a_service_account_that_is_not_there(
    make_endpoint, make_plan, living, condition, named, message, reason
):
    from vllmendpoint_operator.status import endpoint_status

    endpoint = make_endpoint(worker={"serviceAccountName": named} if named else {})
    planned = make_plan(endpoint)
    observed = living(planned)
    failure = {"type": "ReplicaFailure", "status": "True", "message": message}
    observed.children["Deployment", "smollm-workers"]["status"]["conditions"] = [failure]
    found = condition(endpoint_status(endpoint, observed, planned, None), "ResolvedRefs")
    assert found.reason == reason
    if reason != "Resolved":
        assert found.message == (
            "The ServiceAccount 'mine' does not exist in the namespace team-a, so Kubernetes cannot create "
            "worker "
            "pods. Create it, or change worker.serviceAccountName."
        )
