"""``diff`` and ``diff_scaling``: which actions follow from the plan and the observed state. No I/O."""

from copy import deepcopy
from dataclasses import replace

import pytest

from vllmendpoint_api import Reason, VLLMEndpointStatus, names
from vllmendpoint_operator.apply.acceptance import with_applied_hash
from vllmendpoint_operator.apply.diff import (
    Delete,
    RefreshPod,
    Scale,
    Update,
    diff,
    diff_scaling,
)
from vllmendpoint_operator.desired_state import Scaling
from vllmendpoint_operator.observe.snapshot import Observed, object_key

SERVICE = ("Service", "smollm")
SETTINGS = ("ConfigMap", "smollm-settings")
WORKERS = ("Deployment", "smollm-workers")
BINDING = ("RoleBinding", "smollm-workers")
BUDGET = ("PodDisruptionBudget", "smollm-workers")
CLAIM = ("PersistentVolumeClaim", "smollm-cache")
DELETED = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
OTHER_OWNER = {"ownerReferences": [{"kind": "Chart", "name": "c", "uid": "uid-c", "controller": True}]}


def applied(plan, noon):
    """The observed state after every child of ``plan`` was created."""
    children = {}
    for number, child in enumerate(plan.children):
        live = deepcopy(with_applied_hash(child))
        live["metadata"] |= {"uid": f"uid-{number}", "resourceVersion": str(number)}
        children[object_key(child)] = live
    return Observed(now=noon, children=children)


def without(observed, *keys):
    return replace(observed, children={k: obj for k, obj in observed.children.items() if k not in keys})


def changed(observed, key, *path, value):
    """``observed`` with another value at ``path`` of one child."""
    children = deepcopy(dict(observed.children))
    at = children[key]
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return replace(observed, children=children)


def described(actions):
    """``[("Create", "Service", "smollm"), ...]``"""
    found = []
    for action in actions:
        obj = getattr(action, "desired", None) or getattr(action, "live", None)
        found.append((type(action).__name__, *(() if obj is None else target(obj))))
    return found


def target(obj):
    return obj["kind"], obj["metadata"]["name"]


@pytest.fixture
def endpoint(make_endpoint):
    return make_endpoint(replicas=2, before=VLLMEndpointStatus())


@pytest.fixture
def plan(endpoint, make_plan):
    return make_plan(endpoint)


@pytest.fixture
def observed(plan, noon):
    return applied(plan, noon)


def test_children_in_sync_need_no_action(endpoint, plan, observed):
    assert diff(endpoint, plan, observed, {}) == []


def test_a_new_endpoint_is_created_in_order_without_a_check(make_endpoint, make_plan, noon):
    endpoint = make_endpoint()
    plan = make_plan(endpoint)
    actions = diff(endpoint, plan, Observed(now=noon), {})
    assert described(actions) == [("Create", *object_key(child)) for child in plan.children]
    assert not any(action.has_own_children for action in actions)


@pytest.mark.parametrize("has_status", [True, False])
def test_the_endpoint_is_confirmed_once_before_a_missing_child_is_created(
    endpoint, make_endpoint, plan, observed, has_status
):
    """A new endpoint has no status; but if one child exists, another may have been deleted."""
    endpoint = endpoint if has_status else make_endpoint(replicas=2)
    actions = diff(endpoint, plan, without(observed, SERVICE, SETTINGS), {})
    assert described(actions) == [("ConfirmEndpoint",), ("Create", *SETTINGS), ("Create", *SERVICE)]
    assert actions[1].has_own_children


def test_the_endpoint_is_confirmed_if_a_name_is_taken(make_endpoint, make_plan, observed):
    """The object was not observed, but the cache has it: it is the endpoint's and in sync."""
    endpoint = make_endpoint(replicas=2)
    live = observed.children[SERVICE]
    actions = diff(endpoint, make_plan(endpoint), without(observed, *observed.children), {SERVICE: live})
    assert described(actions)[0] == ("ConfirmEndpoint",)
    assert ("Create", *SERVICE) not in described(actions)


@pytest.mark.parametrize(
    ("key", "path", "value", "reverts"),
    [
        (WORKERS, ("spec", "replicas"), 7, (("spec", "replicas"),)),
        (SETTINGS, ("data", names.SETTINGS_FILE), "{}", (("data", names.SETTINGS_FILE),)),
        (BINDING, ("subjects",), [], (("subjects",),)),
    ],
)
def test_a_change_by_another_client_is_reverted(endpoint, plan, observed, key, path, value, reverts):
    edited = changed(observed, key, *path, value=value)
    (update,) = diff(endpoint, plan, edited, {})
    assert isinstance(update, Update)
    assert (object_key(update.desired), update.reverts) == (key, reverts)
    assert update.live is edited.children[key]


def test_a_change_of_the_spec_reverts_nothing(make_endpoint, make_plan, observed):
    scaled = make_endpoint(replicas=3, before=VLLMEndpointStatus())
    actions = diff(scaled, make_plan(scaled, observed), observed, {})
    assert described(actions) == [("Update", *WORKERS)]
    assert actions[0].reverts == ()


def test_a_field_that_others_added_is_kept(endpoint, plan, observed):
    assert diff(endpoint, plan, changed(observed, SERVICE, "spec", "sessionAffinity", value="None"), {}) == []


def test_another_role_recreates_the_binding_after_a_dry_run(endpoint, make_plan, observed):
    renamed = make_plan(endpoint, observed, role_name="another")
    actions = diff(endpoint, renamed, observed, {})
    assert described(actions) == [
        ("ConfirmEndpoint",),
        *(
            (action, "RoleBinding", name)
            for part in ("workers", "frontend")
            for action, name in (
                ("DryRun", f"smollm-{part}-next"),
                ("Delete", f"smollm-{part}"),
                ("Create", f"smollm-{part}"),
            )
        ),
    ]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (DELETED, Reason.PENDING),
        (OTHER_OWNER, Reason.NAME_TAKEN),
        ({"ownerReferences": []}, Reason.NAME_TAKEN),
    ],
    ids=["being deleted", "of another owner", "without an owner"],
)
def test_a_taken_name_aborts_after_the_children_before_it(
    endpoint, make_endpoint, make_plan, observed, metadata, reason
):
    live = observed.children[SERVICE]
    other = {**live, "metadata": {**live["metadata"], **metadata}}
    new = make_endpoint(replicas=3, healthCheck={"periodSeconds": 7}, before=VLLMEndpointStatus())
    found = without(observed, SERVICE)
    actions = diff(new, make_plan(new, observed), found, {SERVICE: other})
    assert described(actions) == [("Update", *SETTINGS), ("Abort",)], "the Deployment comes later"
    assert actions[-1].error.reason is reason


@pytest.mark.parametrize("is_mine", [True, False])
def test_a_claim_that_is_being_deleted_is_left_to_its_pods(make_endpoint, make_plan, noon, is_mine):
    endpoint = make_endpoint(cache={"volumeClaimTemplate": {"size": "1Gi"}}, before=VLLMEndpointStatus())
    plan = make_plan(endpoint)
    observed = changed(applied(plan, noon), CLAIM, "metadata", "deletionTimestamp", value="now")
    if not is_mine:
        observed = changed(observed, CLAIM, "metadata", "ownerReferences", 0, "uid", value="uid-0")
    assert described(diff(endpoint, plan, observed, {})) == ([] if is_mine else [("Abort",)])


def test_dry_runs_come_first_and_deletions_last(make_endpoint, make_plan, plan, observed):
    """A changed template is verified before the revision that pins it is written."""
    template = {"spec": {"nodeSelector": {"zone": "a"}}}
    endpoint = make_endpoint(
        replicas=2, worker={"podTemplate": template}, frontend={"mode": "None"}, before=VLLMEndpointStatus()
    )
    new = make_plan(endpoint, observed)
    actions = described(diff(endpoint, new, observed, {}))
    assert actions[0] == ("DryRun", *WORKERS)
    assert actions[1] == ("ConfirmEndpoint",)
    assert actions[2][:2] == ("Create", "ControllerRevision")
    assert actions[-len(new.prune) :] == [("Delete", *object_key(obj)) for obj in new.prune]
    assert {name for _, name in map(object_key, new.prune)} >= {"smollm-frontend"}


def test_a_dry_run_of_another_owners_object_is_left_out(make_endpoint, make_plan, observed):
    endpoint = make_endpoint(worker={"podTemplate": {"spec": {"priorityClassName": "p"}}})
    live = {
        **observed.children[WORKERS],
        "metadata": {**observed.children[WORKERS]["metadata"], **OTHER_OWNER},
    }
    plan = make_plan(endpoint)
    assert ("DryRun", *WORKERS) in described(diff(endpoint, plan, without(observed, WORKERS), {}))
    taken = diff(endpoint, plan, without(observed, WORKERS), {WORKERS: live})
    assert ("DryRun", *WORKERS) not in described(taken)


def test_pods_with_older_settings_are_refreshed(endpoint, plan, observed, make_worker, make_frontend):
    pods = (make_worker("w-1"), make_worker("w-2"))
    frontends = (make_frontend("f-1"), make_frontend("f-2"))
    refreshed = replace(plan, refresh={"w-2": "hash", "f-1": "hash"})
    actions = diff(endpoint, refreshed, replace(observed, workers=pods, frontends=frontends), {})
    assert actions == [RefreshPod(pods[1].obj, "hash"), RefreshPod(frontends[0].obj, "hash")]


def test_scaling_changes_replicas_then_the_budget(make_endpoint, observed):
    budget = observed.children[BUDGET]
    scaling = Scaling({"smollm-workers": 4, "smollm-frontend": 1}, (), (budget,))
    actions = diff_scaling(make_endpoint(replicas=4), scaling, observed, {})
    assert actions == [Scale(observed.children[WORKERS], 4), Delete(budget)]


def test_scaling_confirms_the_endpoint_before_it_creates_a_budget(make_endpoint, plan, observed):
    budget = next(child for child in plan.children if object_key(child) == BUDGET)
    scaling = Scaling({"smollm-workers": 2}, (budget,), ())
    actions = diff_scaling(make_endpoint(), scaling, without(observed, BUDGET), {})
    assert described(actions) == [("ConfirmEndpoint",), ("Create", *BUDGET)]
