"""Existing objects with the name of a child: of another owner, without one, or being deleted."""

import pytest

from tests.unit.operator.applying import apply_plan
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import ConditionError, TerminalError

OTHER_OWNER = {"kind": "Chart", "name": "c", "uid": "uid-c", "controller": True}


@pytest.mark.parametrize(
    ("labelled", "owners", "message"),
    [
        (
            False,
            [],
            "exists and does not belong to this endpoint. Create the endpoint under another name, or ",
        ),
        (
            True,
            [OTHER_OWNER],
            "belongs to the Chart 'c', which needs it. Create this endpoint under another name.",
        ),
        (
            True,
            [],
            "remains from an earlier endpoint of this name that was deleted with --cascade=orphan. ",
        ),
    ],
    ids=["without labels", "labelled and with another owner", "orphaned"],
)
@pytest.mark.parametrize("kind", ["Service", "ConfigMap", "Deployment", "ServiceAccount"])
async def test_an_object_of_another_owner_is_not_changed(
    kube, cache, put, make_endpoint, make_plan, kind, labelled, owners, message
):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    wanted = next(c for c in planned.children if c["kind"] == kind)
    labels = wanted["metadata"]["labels"] if labelled else {}
    put({**wanted, "metadata": {**wanted["metadata"], "labels": labels, "ownerReferences": owners}})
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, planned)
    assert error.value.reason is Reason.NAME_TAKEN
    assert f"The {kind} {wanted['metadata']['name']!r} {message}" in error.value.message
    assert ("kubectl delete -n team-a controllerrevisions," in error.value.message) == ("orphan" in message)
    assert ("apply", kind, wanted["metadata"]["name"]) not in kube.writes


@pytest.mark.parametrize(
    ("first", "second"), [("pair", "pair-workers"), ("pair-workers", "pair")], ids=["later", "earlier"]
)
@pytest.mark.parametrize("owned", [True, False], ids=["owned", "by its labels"])
async def test_the_message_does_not_advise_to_delete_what_another_endpoint_needs(
    kube, cache, put, make_endpoint, make_plan, first, second, owned
):
    """The frontend's Service of one endpoint has the name of the other's workers' Service."""
    theirs = make_plan(make_endpoint(name=first))
    service = next(
        c for c in theirs.children if (c["kind"], c["metadata"]["name"]) == ("Service", "pair-workers")
    )
    (owner,) = service["metadata"]["ownerReferences"]
    put(service, ownerReferences=[{**owner, "uid": "uid-2"}] if owned else [])
    endpoint = make_endpoint(name=second)
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.NAME_TAKEN
    message = error.value.message
    assert message.startswith(
        f"metadata.name: The Service 'pair-workers' belongs to the VLLMEndpoint {first!r}, which needs it."
        if owned
        else f"metadata.name: The Service 'pair-workers' belongs to the VLLMEndpoint {first!r}, whose labels"
    )
    assert message.endswith("Create this endpoint under another name.")
    assert "delete" not in message


async def test_the_message_about_a_child_without_owner_names_that_child_alone(
    kube, cache, put, make_endpoint, make_plan
):
    """``kubectl replace`` of an edited export removes the owner. The other children must not be deleted."""
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    put(kube.objects["Service", "smollm"], ownerReferences=[])
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, planned)
    assert error.value.reason is Reason.NAME_TAKEN
    assert "under another name, or delete the Service if nothing needs it." in error.value.message
    assert "kubectl delete" not in error.value.message


@pytest.mark.parametrize(
    "metadata",
    [{"deletionTimestamp": "2026-01-01T12:00:00Z"}, {"ownerReferences": "earlier"}],
    ids=["being deleted", "of an earlier endpoint"],
)
async def test_an_object_that_is_being_deleted_is_awaited(
    kube, cache, put, make_endpoint, make_plan, metadata
):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    service = next(c for c in planned.children if c["kind"] == "Service")
    if metadata.get("ownerReferences"):
        (owner,) = service["metadata"]["ownerReferences"]
        metadata = {"ownerReferences": [{**owner, "uid": "uid-0"}]}
    put(service, **metadata)
    with pytest.raises(ConditionError) as error:
        await apply_plan(kube, cache, endpoint, planned)
    assert error.value.reason is Reason.PENDING, "no user has to act"
    assert "is being deleted" in error.value.message


async def test_a_claim_that_pods_still_mount_blocks_nothing(kube, cache, put, make_endpoint, make_plan):
    """The API server deletes a claim after the last pod that mounts it."""
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    planned = make_plan(endpoint)
    claim = next(c for c in planned.children if c["kind"] == "PersistentVolumeClaim")
    going = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
    put(claim, **going)
    await apply_plan(kube, cache, endpoint, planned)
    assert ("apply", "Deployment", "smollm-workers") in kube.writes
    assert "PersistentVolumeClaim" not in {kind for _, kind, _ in kube.writes}
    (owner,) = claim["metadata"]["ownerReferences"]
    put(claim, ownerReferences=[{**owner, "uid": "uid-0"}], **going)
    with pytest.raises(ConditionError, match=r"is being deleted\. The operator creates it again"):
        await apply_plan(kube, cache, endpoint, planned)
