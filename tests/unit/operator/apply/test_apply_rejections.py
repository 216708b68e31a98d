"""Errors of the API server when the children are applied, and the conditions that report them."""

import pytest

from tests.unit.operator.applying import apply_plan
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import ConditionError, Rejected, TerminalError

QUOTA = (
    'services "smollm" is forbidden: exceeded quota: q, requested: count/services=1, '
    "limited: count/services=0"
)
NO_RIGHT = (
    'services "smollm" is forbidden: User "system:serviceaccount:s:o" cannot patch resource "services" '
    'in API group "" in the namespace "team-a"'
)
NO_BIND = (
    'rolebindings.rbac.authorization.k8s.io "smollm-workers" is forbidden: user '
    '"system:serviceaccount:s:o" (groups=["system:authenticated"]) is attempting to grant RBAC permissions '
    'not currently held:\n{APIGroups:[""], Resources:["pods"], Verbs:["get"]}'
)


@pytest.mark.parametrize("message", [QUOTA, NO_RIGHT, NO_BIND], ids=["quota", "right", "bind"])
async def test_rejections_that_the_spec_does_not_cause_are_retried(
    kube, cache, make_endpoint, make_plan, message
):
    endpoint = make_endpoint()
    kube.rejections["Service"] = Rejected(403, message)
    with pytest.raises(ConditionError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.PENDING
    assert error.value.message.startswith("The API server rejected the Service smollm")
    advice = "Raise the ResourceQuota. " if message is QUOTA else ""
    assert error.value.message.endswith(f": {message}. {advice}The operator retries.")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Deployment", Reason.INVALID_POD_TEMPLATE), ("Service", Reason.INVALID_SPEC)],
)
async def test_a_rejection_by_the_api_server_is_reported(kube, cache, make_endpoint, make_plan, kind, reason):
    endpoint = make_endpoint()
    kube.rejections[kind] = Rejected(422, "spec.x: must be y")
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is reason
    assert "The API server rejected the" in error.value.message
    assert "spec.x: must be y" in error.value.message


async def test_a_rejected_claim_is_reported_in_one_line(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    kube.rejections["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable\n  core.Spec{\n")
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.INVALID_SPEC
    assert error.value.message == (
        "cache.volumeClaimTemplate: The API server rejected the PersistentVolumeClaim smollm-cache: "
        "spec: Forbidden: immutable."
    )


async def test_the_message_about_an_immutable_claim_names_both_remedies(
    kube, cache, put, make_endpoint, make_plan
):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    claim = next(c for c in make_plan(endpoint).children if c["kind"] == "PersistentVolumeClaim")
    put(claim)
    larger = make_endpoint(cache={"volumeClaimTemplate": {"size": "10Gi"}})
    kube.rejections["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable")
    with pytest.raises(
        TerminalError,
        match=r"The existing claim has 9Gi\. Set size to 9Gi, or, .*`kubectl delete pvc smollm-cache`",
    ):
        await apply_plan(kube, cache, larger, make_plan(larger))


async def test_the_message_about_a_claim_over_quota_names_its_field(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "10Gi"}})
    kube.rejections["PersistentVolumeClaim"] = Rejected(
        403, "exceeded quota: q, requested: requests.storage=10Gi"
    )
    with pytest.raises(ConditionError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.PENDING
    assert error.value.message.endswith(
        "Raise the ResourceQuota, or lower cache.volumeClaimTemplate.size. The operator retries."
    )
