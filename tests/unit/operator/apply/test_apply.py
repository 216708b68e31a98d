"""When a child differs from what is live, and what an apply does about it."""

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


async def test_creates_all_then_writes_nothing(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(replicas=2)
    planned = make_plan(endpoint)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == len(planned.children)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == 0
    assert {kind for _, kind, _ in kube.writes} == {kind.kind for kind in MANAGED if kind is not CLAIM}


@pytest.mark.parametrize(
    "endpoint_now",
    [None, {"metadata": {"uid": "uid-2"}}, {"metadata": {"uid": "uid-1", "deletionTimestamp": "x"}}],
    ids=["gone", "made anew", "being deleted"],
)
async def test_nothing_is_made_for_an_endpoint_that_goes(kube, cache, make_endpoint, make_plan, endpoint_now):
    """The garbage collector's deletions may be told before the endpoint's own."""
    endpoint = make_endpoint(before=VLLMEndpointStatus())
    kube.endpoint = endpoint_now
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.writes == []


async def test_of_a_new_endpoint_nothing_is_read(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == []
    kube.objects.pop(("Service", "smollm"))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == [("VLLMEndpoint", "smollm")], "once something was made, it may be going"


async def test_what_the_cache_has_yet_to_hear_of_is_ours_all_the_same(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    kube.writes.clear()
    assert (await apply_plan(kube, cache, endpoint, make_plan(endpoint))).writes == 1
    assert kube.writes == [("apply", "Service", "smollm")]


async def test_ends_once_the_endpoint_is_known_to_go(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint), lambda: len(kube.writes) < 3)
    assert len(kube.writes) == 3


async def test_a_field_taken_out_shows_in_the_digest(kube, cache, make_endpoint, make_plan):
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


@pytest.mark.parametrize("told", [QUOTA, NO_RIGHT, NO_BIND], ids=["quota", "right", "bind"])
async def test_what_says_nothing_of_the_spec_is_tried_again(kube, cache, make_endpoint, make_plan, told):
    endpoint = make_endpoint()
    kube.refuse["Service"] = Rejected(403, told)
    with pytest.raises(ConditionError) as refused:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert refused.value.reason is Reason.PENDING
    assert refused.value.message.startswith("the API server refuses the Service smollm")
    room = ". Raise the ResourceQuota" if told is QUOTA else ""
    assert refused.value.message.endswith(f": {told}{room}; it is tried again")


SOMEBODY = {"kind": "Chart", "name": "c", "uid": "uid-c", "controller": True}


@pytest.mark.parametrize(
    ("labelled", "owners", "told"),
    [
        (
            False,
            [],
            "exists and is not this endpoint's. Create the endpoint under another name, or delete the ",
        ),
        (
            True,
            [SOMEBODY],
            "belongs to the Chart 'c', which needs it. Create this endpoint under another name",
        ),
        (
            True,
            [],
            "was left by an earlier endpoint of this name, deleted with --cascade=orphan; ",
        ),
    ],
    ids=["a stranger's", "labelled and owned by another", "left by an endpoint of this name"],
)
@pytest.mark.parametrize("kind", ["Service", "ConfigMap", "Deployment", "ServiceAccount"])
async def test_anothers_object_is_left_alone(
    kube, cache, put, make_endpoint, make_plan, kind, labelled, owners, told
):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    wanted = next(c for c in planned.children if c["kind"] == kind)
    labels = wanted["metadata"]["labels"] if labelled else {}
    put({**wanted, "metadata": {**wanted["metadata"], "labels": labels, "ownerReferences": owners}})
    with pytest.raises(TerminalError) as refused:
        await apply_plan(kube, cache, endpoint, planned)
    assert refused.value.reason is Reason.NAME_TAKEN
    assert f"the {kind} {wanted['metadata']['name']!r} {told}" in refused.value.message
    assert ("kubectl delete -n team-a controllerrevisions," in refused.value.message) == ("orphan" in told)
    assert ("apply", kind, wanted["metadata"]["name"]) not in kube.writes


@pytest.mark.parametrize(
    ("first", "second"), [("pair", "pair-workers"), ("pair-workers", "pair")], ids=["later", "earlier"]
)
@pytest.mark.parametrize("owned", [True, False], ids=["owned", "by its labels"])
async def test_nobody_is_advised_to_delete_what_another_endpoint_needs(
    kube, cache, put, make_endpoint, make_plan, first, second, owned
):
    """The frontend's Service of the one is the workers' Service of the other."""
    theirs = make_plan(make_endpoint(name=first))
    service = next(
        c for c in theirs.children if (c["kind"], c["metadata"]["name"]) == ("Service", "pair-workers")
    )
    (owner,) = service["metadata"]["ownerReferences"]
    put(service, ownerReferences=[{**owner, "uid": "uid-2"}] if owned else [])
    endpoint = make_endpoint(name=second)
    with pytest.raises(TerminalError) as refused:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert refused.value.reason is Reason.NAME_TAKEN
    said = refused.value.message
    assert said.startswith(
        f"metadata.name: the Service 'pair-workers' belongs to the VLLMEndpoint {first!r}, which needs it."
        if owned
        else f"metadata.name: the Service 'pair-workers' belongs to the VLLMEndpoint {first!r}, whose labels"
    )
    assert said.endswith("Create this endpoint under another name")
    assert "delete" not in said


async def test_the_message_about_a_child_without_owner_names_that_child_alone(
    kube, cache, put, make_endpoint, make_plan
):
    """``kubectl replace`` of an edited export removes the owner. The other children must not be deleted."""
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    put(kube.objects["Service", "smollm"], ownerReferences=[])
    with pytest.raises(TerminalError) as refused:
        await apply_plan(kube, cache, endpoint, planned)
    assert refused.value.reason is Reason.NAME_TAKEN
    assert "under another name, or delete the Service if nothing needs it" in refused.value.message
    assert "kubectl delete" not in refused.value.message


@pytest.mark.parametrize(
    "metadata",
    [{"deletionTimestamp": "2026-01-01T12:00:00Z"}, {"ownerReferences": "earlier"}],
    ids=["a child on its way out", "a child of the endpoint that had this name before"],
)
async def test_what_is_on_its_way_out_is_waited_for(kube, cache, put, make_endpoint, make_plan, metadata):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    service = next(c for c in planned.children if c["kind"] == "Service")
    if metadata.get("ownerReferences"):
        (owner,) = service["metadata"]["ownerReferences"]
        metadata = {"ownerReferences": [{**owner, "uid": "uid-0"}]}
    put(service, **metadata)
    with pytest.raises(ConditionError) as waiting:
        await apply_plan(kube, cache, endpoint, planned)
    assert waiting.value.reason is Reason.PENDING, "nobody has to do anything"
    assert "is being deleted" in waiting.value.message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Deployment", Reason.INVALID_POD_TEMPLATE), ("Service", Reason.INVALID_SPEC)],
)
async def test_a_refusal_of_the_api_server_is_told(kube, cache, make_endpoint, make_plan, kind, reason):
    endpoint = make_endpoint()
    kube.refuse[kind] = Rejected(422, "spec.x: must be y")
    with pytest.raises(TerminalError) as refused:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert refused.value.reason is reason
    assert "the API server refuses the" in refused.value.message
    assert "spec.x: must be y" in refused.value.message


async def test_a_claim_that_cannot_be_changed_so_is_told_in_a_line(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    kube.refuse["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable\n  core.Spec{\n")
    with pytest.raises(TerminalError) as refused:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert refused.value.reason is Reason.INVALID_SPEC
    assert refused.value.message == (
        "cache.volumeClaimTemplate: the API server refuses the PersistentVolumeClaim smollm-cache: "
        "spec: Forbidden: immutable"
    )


async def test_a_claim_that_stands_and_cannot_be_changed_may_be_deleted(
    kube, cache, put, make_endpoint, make_plan
):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "9Gi"}})
    claim = next(c for c in make_plan(endpoint).children if c["kind"] == "PersistentVolumeClaim")
    put(claim)
    larger = make_endpoint(cache={"volumeClaimTemplate": {"size": "10Gi"}})
    kube.refuse["PersistentVolumeClaim"] = Rejected(422, "spec: Forbidden: immutable")
    with pytest.raises(
        TerminalError, match=r"; it has 9Gi: set size to that again, or, .*`kubectl delete pvc smollm-cache`"
    ):
        await apply_plan(kube, cache, larger, make_plan(larger))


async def test_a_claim_that_its_pods_hold_keeps_nothing_waiting(kube, cache, put, make_endpoint, make_plan):
    """The API server deletes a claim when its last pod is gone, and no sooner."""
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
    with pytest.raises(ConditionError, match="is being deleted; this goes on when it is gone"):
        await apply_plan(kube, cache, endpoint, planned)


async def test_what_is_over_is_deleted_last(kube, cache, living, make_endpoint, make_plan):
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
    assert {verb for verb, _, _ in kube.writes} <= {"delete", "verify"}, "already gone is no error"


async def test_a_binding_to_another_role_is_made_anew(kube, cache, make_endpoint, make_plan):
    """A roleRef cannot be changed: nothing is deleted before the endpoint is known to stand."""
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


async def test_a_binding_stays_where_the_other_role_may_not_be_bound(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    kube.writes.clear()
    kube.refuse["RoleBinding"] = Rejected(403, "may not bind")
    with pytest.raises(TerminalError, match="may not bind"):
        await apply_plan(kube, cache, endpoint, make_plan(endpoint, role_name="another"))
    assert kube.writes == [("verify", "RoleBinding", "smollm-workers-next")]


async def test_a_binding_whose_subjects_changed_is_not(kube, cache, put, make_endpoint, make_plan):
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


async def test_a_pod_template_is_verified_before_anything_is_written(
    kube, cache, living, make_endpoint, make_plan
):
    endpoint = templated(make_endpoint, "a")
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes[0] == ("verify", "Deployment", "smollm-workers")
    assert [verb for verb, _, _ in kube.writes].count("verify") == 1, "nobody touched the frontend's"
    kube.writes.clear()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint, observed_of(kube, living, planned)))
    assert kube.writes == [], "an unchanged one is not asked about again"

    other = templated(make_endpoint, "b")
    changed = make_plan(other, observed_of(kube, living, planned))
    kube.refuse["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(
        TerminalError, match=r"refuses the Deployment smollm-workers: spec\.template\.spec: no"
    ) as no:
        await apply_plan(kube, cache, other, changed)
    assert no.value.reason is Reason.INVALID_POD_TEMPLATE
    assert kube.writes == [("verify", "Deployment", "smollm-workers")], (
        "nothing is written, nothing is pinned"
    )


async def test_all_pod_templates_that_are_refused_are_told(kube, cache, make_endpoint, make_plan):
    endpoint = templated(make_endpoint, "a", podTemplate={"spec": {"nodeSelector": {"zone": "b"}}})
    kube.refuse["Deployment"] = Rejected(422, "spec.template.spec: no")
    with pytest.raises(TerminalError) as no:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert no.value.reason is Reason.INVALID_POD_TEMPLATE
    assert no.value.message == (
        "the API server refuses the Deployment smollm-workers: spec.template.spec: no; "
        "the API server refuses the Deployment smollm-frontend: spec.template.spec: no"
    )
    assert [verb for verb, _, _ in kube.writes] == ["verify", "verify"], "nothing is written"


async def test_a_claim_for_which_the_quota_has_no_room_names_its_field(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "10Gi"}})
    kube.refuse["PersistentVolumeClaim"] = Rejected(
        403, "exceeded quota: q, requested: requests.storage=10Gi"
    )
    with pytest.raises(ConditionError) as refused:
        await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert refused.value.reason is Reason.PENDING
    assert refused.value.message.endswith(
        "Raise the ResourceQuota, or lower cache.volumeClaimTemplate.size; it is tried again"
    )


async def test_what_the_api_server_warns_of_is_kept_once(kube, cache, living, make_endpoint, make_plan):
    """Both the dry run and the creation are warned of; scaling what was warned of is no news."""
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
    ("before", "after", "asked"),
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
def test_what_is_verified(make_endpoint, make_plan, living, before, after, asked):
    observed = None if before is None else living(make_plan(make_endpoint(**before)))
    planned = make_plan(make_endpoint(**after), observed)
    assert [child["metadata"]["name"] for child in planned.verify] == asked
