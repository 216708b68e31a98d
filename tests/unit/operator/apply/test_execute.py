"""What execution writes, and the errors it raises."""

from dataclasses import replace

import pytest

from tests.unit.operator.applying import apply_plan, observe_children
from tests.unit.operator.fake_kube import FakeKube
from vllmendpoint_api import Reason, VLLMEndpointStatus, names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.errors import ConditionError, Rejected, TerminalError
from vllmendpoint_operator.kube.kinds import CLAIM, MANAGED, SERVICE, by_name


@pytest.fixture
def kube():
    return FakeKube()


@pytest.fixture
def cache(kube):
    return Cache(kube, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)


@pytest.fixture
def put(kube, cache):
    """Put an object into the cluster and the cache, as the watch would."""

    def into(obj, **metadata):
        kube.version += 1
        metadata = {**obj["metadata"], "uid": "x", "resourceVersion": str(kube.version), **metadata}
        live = {**obj, "metadata": metadata}
        kube.objects[obj["kind"], metadata["name"]] = live
        if metadata.get("labels", {}).get(names.LABEL_MANAGED_BY):
            cache.informer(by_name(obj["kind"]), "team-a").apply_local_write(live)
        return live

    return into


async def test_only_what_was_not_observed_is_read_from_the_cache(kube, cache, make_endpoint, make_plan):
    planned = make_plan(endpoint := make_endpoint())
    await apply_plan(kube, cache, endpoint, planned)
    observed = observe_children(cache, endpoint)
    del observed.children["Service", "smollm"]
    looked = []
    for informer in cache.informers:
        informer.get = lambda key, get=informer.get: looked.append(key) or get(key)
    assert (await apply_plan(kube, cache, endpoint, planned, observed=observed)).writes == 0
    assert looked == [("team-a", "smollm")]


async def test_the_first_apply_creates_all_children_and_the_second_writes_nothing(
    kube, cache, make_endpoint, make_plan
):
    endpoint = make_endpoint(replicas=2)
    planned = make_plan(endpoint)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == len(planned.children)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == 0
    assert {kind for _, kind, _ in kube.writes} == {kind.kind for kind in MANAGED if kind is not CLAIM}


@pytest.mark.parametrize(
    "endpoint_now",
    [None, {"metadata": {"uid": "uid-2"}}, {"metadata": {"uid": "uid-1", "deletionTimestamp": "x"}}],
    ids=["gone", "recreated", "being deleted"],
)
async def test_nothing_is_created_for_an_endpoint_that_is_deleted(
    kube, cache, make_endpoint, make_plan, endpoint_now
):
    """The watch may report deletions by the garbage collector before that of the endpoint."""
    endpoint = make_endpoint(before=VLLMEndpointStatus())
    kube.endpoint = endpoint_now
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.writes == []


async def test_nothing_is_read_for_a_new_endpoint(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == []
    kube.objects.pop(("Service", "smollm"))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == [("VLLMEndpoint", "smollm")], "once a child was created, the endpoint may be deleted"


async def test_a_child_that_is_missing_in_the_cache_is_applied_over(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    kube.writes.clear()
    assert (await apply_plan(kube, cache, endpoint, make_plan(endpoint))).writes == 1
    assert kube.writes == [("apply", "Service", "smollm")]


async def test_execution_ends_once_the_endpoint_is_not_current(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint), lambda: len(kube.writes) < 3)
    assert len(kube.writes) == 3


async def test_a_removed_field_changes_the_applied_hash(kube, cache, make_endpoint, make_plan):
    with_selector = make_endpoint(worker={"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}})
    await apply_plan(kube, cache, with_selector, make_plan(with_selector))
    kube.writes.clear()
    without = make_endpoint()
    await apply_plan(kube, cache, without, make_plan(without))
    assert ("apply", "Deployment", "smollm-workers") in kube.writes


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
    kube.refuse["Service"] = Rejected(403, message)
    with pytest.raises(ConditionError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.PENDING
    assert error.value.message.startswith("The API server rejected the Service smollm")
    advice = "Raise the ResourceQuota. " if message is QUOTA else ""
    assert error.value.message.endswith(f": {message}. {advice}The operator retries.")


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


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Deployment", Reason.INVALID_POD_TEMPLATE), ("Service", Reason.INVALID_SPEC)],
)
async def test_a_rejection_by_the_api_server_is_reported(kube, cache, make_endpoint, make_plan, kind, reason):
    endpoint = make_endpoint()
    kube.refuse[kind] = Rejected(422, "spec.x: must be y")
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is reason
    assert "The API server rejected the" in error.value.message
    assert "spec.x: must be y" in error.value.message


async def test_a_rejected_claim_is_reported_in_one_line(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    kube.refuse["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable\n  core.Spec{\n")
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
    kube.refuse["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable")
    with pytest.raises(
        TerminalError,
        match=r"The existing claim has 9Gi\. Set size to 9Gi, or, .*`kubectl delete pvc smollm-cache`",
    ):
        await apply_plan(kube, cache, larger, make_plan(larger))


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


async def test_pruned_children_are_deleted_last(kube, cache, living, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    none = make_endpoint(frontend={"mode": "None"})
    children = {key: {"kind": key[0], **obj} for key, obj in kube.objects.items()}
    planned = make_plan(none, replace(living(make_plan(endpoint)), children=children))
    kube.writes.clear()
    await apply_plan(kube, cache, none, planned)
    assert [verb for verb, _, _ in kube.writes][-5:] == ["delete"] * 5
    assert ("Deployment", "smollm-frontend") not in kube.objects
    kube.writes.clear()
    await apply_plan(kube, cache, none, planned)
    # The workers read the frontend's mode at their start, so their template changes and is verified.
    assert {verb for verb, _, _ in kube.writes} <= {"delete", "verify"}, (
        "an object that is already deleted is no error"
    )


async def test_a_binding_to_another_role_is_recreated(kube, cache, make_endpoint, make_plan):
    """A roleRef is immutable. Nothing is deleted before the endpoint is known to exist."""
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    old = kube.objects["RoleBinding", "smollm-workers"]
    kube.writes.clear()
    renamed = make_plan(endpoint, role_name="another")
    kube.endpoint = None
    assert (await apply_plan(kube, cache, endpoint, renamed)).writes == 0
    assert kube.writes == []
    kube.endpoint = {"metadata": {"uid": "uid-1"}}
    assert (await apply_plan(kube, cache, endpoint, renamed)).writes == 4
    assert kube.writes == [
        (verb, "RoleBinding", name)
        for part in ("workers", "frontend")
        for verb, name in (
            ("verify", f"smollm-{part}-next"),
            ("delete", f"smollm-{part}"),
            ("apply", f"smollm-{part}"),
        )
    ]
    new = kube.objects["RoleBinding", "smollm-workers"]
    assert new["roleRef"]["name"] == "another"
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, renamed)
    assert kube.writes == []


async def test_a_binding_is_kept_if_the_other_role_may_not_be_bound(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    kube.writes.clear()
    kube.refuse["RoleBinding"] = Rejected(403, "may not bind")
    with pytest.raises(TerminalError, match="may not bind"):
        await apply_plan(kube, cache, endpoint, make_plan(endpoint, role_name="another"))
    assert kube.writes == [("verify", "RoleBinding", "smollm-workers-next")]


async def test_a_binding_with_other_subjects_is_updated(kube, cache, put, make_endpoint, make_plan):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    put({**kube.objects["RoleBinding", "smollm-workers"], "kind": "RoleBinding", "subjects": []})
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes == [("apply", "RoleBinding", "smollm-workers")]


def templated(make_endpoint, zone, **frontend):
    spec = {"spec": {"nodeSelector": {"zone": zone}}}
    return make_endpoint(worker={"podTemplate": spec}, frontend=frontend)


def observed_of(kube, living, planned):
    children = {key: {"kind": key[0], **obj} for key, obj in kube.objects.items()}
    return replace(living(planned), children=children)


async def test_a_pod_template_is_verified_before_the_first_write(
    kube, cache, living, make_endpoint, make_plan
):
    endpoint = templated(make_endpoint, "a")
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes[0] == ("verify", "Deployment", "smollm-workers")
    assert [verb for verb, _, _ in kube.writes].count("verify") == 1, "the frontend has no podTemplate"
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint, observed_of(kube, living, planned)))
    assert kube.writes == [], "an unchanged template is not verified again"

    other = templated(make_endpoint, "b")
    changed = make_plan(other, observed_of(kube, living, planned))
    kube.refuse["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(
        TerminalError, match=r"rejected the Deployment smollm-workers: spec\.template\.spec: no"
    ) as error:
        await apply_plan(kube, cache, other, changed)
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert kube.writes == [("verify", "Deployment", "smollm-workers")], (
        "nothing is written, nothing is pinned"
    )


async def test_all_rejected_pod_templates_are_reported(kube, cache, make_endpoint, make_plan):
    endpoint = templated(make_endpoint, "a", podTemplate={"spec": {"nodeSelector": {"zone": "b"}}})
    kube.refuse["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(TerminalError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert error.value.message == (
        "The API server rejected the Deployment smollm-workers: spec.template.spec: no. "
        "The API server rejected the Deployment smollm-frontend: spec.template.spec: no."
    )
    assert [verb for verb, _, _ in kube.writes] == ["verify", "verify"], "nothing is written"


async def test_the_message_about_a_claim_over_quota_names_its_field(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "10Gi"}})
    kube.refuse["PersistentVolumeClaim"] = Rejected(
        403, "exceeded quota: q, requested: requests.storage=10Gi"
    )
    with pytest.raises(ConditionError) as error:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert error.value.reason is Reason.PENDING
    assert error.value.message.endswith(
        "Raise the ResourceQuota, or lower cache.volumeClaimTemplate.size. The operator retries."
    )


async def test_warnings_of_the_api_server_are_collected_once(kube, cache, living, make_endpoint, make_plan):
    """The API server repeats the warnings of a dry run on creation, and those of a template on scaling."""
    kube.warn = {("Deployment", "smollm-workers"): ["negative", "odd"], ("Service", "smollm"): ["odd"]}
    endpoint = templated(make_endpoint, "a")
    planned = make_plan(endpoint)
    done = await apply_plan(kube, cache, endpoint, planned)
    assert done.warnings == [
        "Deployment smollm-workers: negative",
        "Deployment smollm-workers: odd",
        "Service smollm: odd",
    ]
    scaled = make_endpoint(**endpoint.spec.wire() | {"replicas": 2})
    done = await apply_plan(kube, cache, scaled, make_plan(scaled, observed_of(kube, living, planned)))
    assert done.writes
    assert done.warnings == []
    other = templated(make_endpoint, "b")
    done = await apply_plan(kube, cache, other, make_plan(other, observed_of(kube, living, planned)))
    assert done.warnings == ["Deployment smollm-workers: negative", "Deployment smollm-workers: odd"]


@pytest.mark.parametrize(
    ("before", "after", "verified"),
    [
        ({}, {}, []),
        ({}, {"replicas": 3}, []),
        ({}, {"healthCheck": {"level": "Standard"}}, []),
        ({}, {"engine": {"args": ["--seed", "1"]}}, ["smollm-workers"]),
        ({}, {"worker": {"image": "x:2"}}, ["smollm-workers", "smollm-frontend"]),
        ({}, {"frontend": {"resources": {"limits": {"cpu": 1}}}}, ["smollm-frontend"]),
        ({"frontend": {"mode": "None"}}, {}, ["smollm-workers"]),
        (
            {"frontend": {"mode": "None"}},
            {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}},
            ["smollm-workers", "smollm-frontend"],
        ),
        (None, {}, []),
        (None, {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}}, ["smollm-frontend"]),
    ],
)
def test_which_deployments_are_verified(make_endpoint, make_plan, living, before, after, verified):
    observed = None if before is None else living(make_plan(make_endpoint(**before)))
    planned = make_plan(make_endpoint(**after), observed)
    assert [child["metadata"]["name"] for child in planned.verify] == verified
