"""Each condition, and what they come to."""

from dataclasses import replace
from datetime import timedelta

import pytest

from vllmendpoint_api import CONDITION_REASONS, Condition, ConditionStatus, Reason, RollingUpdate
from vllmendpoint_operator.components import min_ready_replicas
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.status import invalid_spec_status, partial_spec_status


def told(status) -> dict[str, tuple[str, str]]:
    return {entry.type: (entry.status, entry.reason) for entry in status.conditions}


ALL_WELL = {
    "Accepted": ("True", "Accepted"),
    "ResolvedRefs": ("True", "Resolved"),
    "ConfigurationResolved": ("True", "Resolved"),
    "Available": ("True", "Available"),
    "Generating": ("True", "Generating"),
    "UpToDate": ("True", "UpToDate"),
    "Ready": ("True", "Ready"),
    "Reconciling": ("False", "Settled"),
    "Stalled": ("False", "Settled"),
}


def three(make_worker, endpoint, *verdicts):
    return [make_worker(f"w-{i}", verdict, settings=endpoint) for i, verdict in enumerate(verdicts)]


def test_all_is_well(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint(replicas=3)
    found = make_status(endpoint, *three(make_worker, endpoint, "Generating", "Busy", "Generating"))
    assert told(found) == ALL_WELL
    assert (found.replicas, found.ready_replicas, found.generating_replicas, found.updated_replicas) == (
        3,
        3,
        3,
        3,
    )
    assert found.health_check.source == "ModelDefault"
    assert found.health_check.payload == {"prompt": "1"}
    assert found.url == "http://smollm.team-a.svc:8000/v1"
    assert found.selector == (
        ""
        "app.kubernetes.io/component=worker,app.kubernetes.io/instance=smollm,app.kubernetes.io/name=vllmendpoint"
    )


def test_all_conditions_stand_from_the_first_visit(make_endpoint, make_status, condition):
    found = make_status(make_endpoint(), frontends=())
    assert [entry.type for entry in found.conditions] == [c.value for c in Condition]
    assert all(entry.reason for entry in found.conditions)
    assert told(found)["Ready"] == ("False", "Starting")
    assert told(found)["Reconciling"][0] == "True"
    assert condition(found, "Available").message == (
        "0 of 1 replica is ready (minimum: 1). The pods of the Deployment smollm-workers are being created."
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (
            ("Generating", "Generating", "Stalled"),
            {"Available": ("True", "Available"), "Generating": ("False", "EngineStalled")},
        ),
        (("Generating", "Generating", "Failing"), {"Generating": ("False", "ProbeFailed")}),
        (("Generating", "Failing", "Dead"), {"Generating": ("False", "EngineDead")}),
        (
            ("Generating", "Starting", "Generating"),
            {
                "Available": ("True", "Available"),
                "Generating": ("True", "Generating"),
                "Ready": ("True", "Ready"),
            },
        ),
        (("Starting", "Starting", "Starting"), {"Generating": ("Unknown", "NoWorkers")}),
        (
            ("Stalled", "Stalled", "Generating"),
            {"Available": ("False", "EngineStalled"), "Generating": ("False", "EngineStalled")},
        ),
        (
            ("Disabled", "Disabled", "Disabled"),
            {"Generating": ("Unknown", "ProbingDisabled"), "Ready": ("True", "Ready")},
        ),
        (
            ("Disabled", "Generating", "Generating"),
            {"Generating": ("Unknown", "ProbingDisabled"), "Ready": ("True", "Ready")},
        ),
    ],
)
def test_verdicts_of_three_replicas(make_endpoint, make_status, make_worker, verdicts, expected):
    endpoint = make_endpoint(replicas=3)
    found = told(make_status(endpoint, *three(make_worker, endpoint, *verdicts)))
    if expected["Generating"][0] == "False":
        expected = {"Ready": ("False", expected["Generating"][1]), **expected}
    assert {kind: found[kind] for kind in expected} == expected


def test_one_of_three_stalled_is_told_whole(make_endpoint, make_status, make_worker, condition):
    endpoint = make_endpoint(replicas=3)
    pods = three(make_worker, endpoint, "Generating", "Generating")
    said = {"verdict__message": "The engine has scheduled no token for 12 s."}
    pods.append(make_worker("w-bad", "Stalled", settings=endpoint, said=said))
    found = make_status(endpoint, *pods)
    assert condition(found, "Generating").message == (
        "1 of 3 replicas is not generating: the engine in pod w-bad is stalled. "
        "The engine has scheduled no token for 12 s. "
        "The pod receives no traffic and restarts after healthCheck.restartAfterSeconds. "
        "To replace it now, delete it."
    )
    assert condition(found, "Ready").message == condition(found, "Generating").message
    assert condition(found, "Stalled").status == "False", "nothing here waits for the user's spec"


@pytest.mark.parametrize(
    ("check", "fix"),
    [
        (
            {"mode": "Observe"},
            (
                "Because healthCheck.mode is Observe, the pod still receives traffic and restarts after "
                "healthCheck."
            ),
        ),
        (
            {"restartAfterSeconds": 0},
            (
                "The pod receives no traffic. It does not restart because healthCheck.restartAfterSeconds "
                "is 0. Delete"
            ),
        ),
    ],
    ids=["observed", "never restarted"],
)
def test_what_becomes_of_a_stalled_worker(make_endpoint, make_status, make_worker, condition, check, fix):
    endpoint = make_endpoint(healthCheck=check)
    found = make_status(endpoint, make_worker("w", "Stalled", settings=endpoint))
    assert f" is stalled. {fix}" in condition(found, "Generating").message


def test_garbage_is_not_generating(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint()
    said = {"verdict__reason": "UnexpectedAnswer", "verdict__message": "no match"}
    found = make_status(endpoint, make_worker("w", "Failing", settings=endpoint, said=said))
    assert told(found)["Generating"] == ("False", "UnexpectedAnswer")


def test_scaled_to_zero_is_ready(make_endpoint, make_status):
    found = told(make_status(make_endpoint(replicas=0)))
    assert found["Available"] == found["Ready"] == ("True", "ScaledToZero")
    assert found["Generating"] == ("Unknown", "NoWorkers")
    assert found["Reconciling"] == ("False", "Settled")


@pytest.mark.parametrize(
    ("replicas", "down", "surge", "needed"),
    [
        (1, 1, 0, 1),
        (3, 1, 0, 2),
        (3, 0, 1, 3),
        (4, "25%", 0, 3),
        (3, "25%", 1, 3),
        (3, "25%", "1%", 3),
        (3, "25%", 0, 2),  # nothing down and nothing on top would never end: the Deployment takes one down
        (10, "100%", 0, 1),
        (3, "2", 0, 1),
        (2, 5, 0, 1),
    ],
)
def test_replicas_required(replicas, down, surge, needed):
    strategy = RollingUpdate.model_validate({"maxUnavailable": down, "maxSurge": surge})
    assert min_ready_replicas(replicas, strategy) == needed


def test_without_the_frontend_it_is_not_available(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint()
    worker = make_worker(settings=endpoint)
    found = make_status(endpoint, worker, frontends=(make_pod("f", ready=False),))
    assert told(found)["Available"] == ("False", "Starting")
    assert condition(found, "Available").message.startswith(
        "0 of 1 frontend pod is ready, so the endpoint accepts no requests. Pod f is starting"
    )
    found = make_status(endpoint, worker, frontends=())
    assert (
        "The pods of the Deployment smollm-frontend are being created."
        in condition(found, "Available").message
    )
    assert (
        told(make_status(make_endpoint(frontend={"mode": "None"}), worker, frontends=()))["Available"][0]
        == "True"
    )


def test_pods_that_cannot_be_created_are_told(make_endpoint, make_plan, living, make_status, condition):
    endpoint = make_endpoint()
    children = dict(living(make_plan(endpoint)).children)
    deployment = children["Deployment", "smollm-workers"]
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "message": 'pods "x" is forbidden: exceeded quota: q',
    }
    children["Deployment", "smollm-workers"] = {**deployment, "status": {"conditions": [failure]}}
    found = make_status(endpoint, children=children)
    assert told(found)["Available"] == ("False", "PodCreationFailed")
    assert "exceeded quota" in condition(found, "Available").message


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"observedGeneration": 0, "replicas": 2, "updatedReplicas": 2}, "2 of 2 replicas run the current"),
        (
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1},
            "1 of 2 replicas runs the current revision, and 1",
        ),
        (
            {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2},
            "revision, and 1 replica of an older revision remains.",
        ),
        (
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1},
            "2 of 2 replicas run the current revision, and 1 of them is available.",
        ),
        ({}, "0 of 2 replicas run the current revision."),
    ],
)
def test_rollout(make_endpoint, make_plan, living, make_status, make_worker, condition, status, message):
    endpoint = make_endpoint(replicas=2)
    children = dict(living(make_plan(endpoint)).children)
    children["Deployment", "smollm-workers"] = {**children["Deployment", "smollm-workers"], "status": status}
    pods = [make_worker(f"w-{i}", settings=endpoint) for i in range(2)]
    found = make_status(endpoint, *pods, children=children)
    assert told(found)["UpToDate"] == told(found)["Ready"] == ("False", "RollingOut")
    assert told(found)["Reconciling"] == ("True", "RollingOut")
    assert message in condition(found, "UpToDate").message


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("the same", "UpToDate"), ("another", "RollingOut"), ("none before", "RollingOut")],
)
def test_a_replica_that_is_unavailable_later_does_not_undo_a_rollout(
    make_endpoint, make_plan, living, make_status, make_worker, revision, expected
):
    first = make_endpoint(replicas=2)
    pods = [make_worker(f"w-{i}", settings=first) for i in range(2)]
    before = None if revision == "none before" else make_status(first, *pods)
    change = {"engine": {"args": ["--seed", "1"]}} if revision == "another" else {}
    endpoint = make_endpoint(replicas=2, before=before, **change)
    children = dict(living(make_plan(endpoint)).children)
    deployment = children["Deployment", "smollm-workers"]
    status = {**deployment["status"], "availableReplicas": 1}
    children["Deployment", "smollm-workers"] = {**deployment, "status": status}
    found = make_status(endpoint, *pods, children=children)
    assert told(found)["UpToDate"][1] == expected


@pytest.mark.parametrize(
    ("reason", "where"),
    [
        (Reason.INVALID_SPEC, "Accepted"),
        (Reason.INVALID_POD_TEMPLATE, "Accepted"),
        (Reason.NAME_TAKEN, "Accepted"),
        (Reason.CONFIG_MAP_NOT_FOUND, "ResolvedRefs"),
        (Reason.CONFIG_MAP_KEY_NOT_FOUND, "ResolvedRefs"),
    ],
)
def test_a_problem_of_the_plan(make_endpoint, make_status, make_worker, condition, reason, where):
    endpoint = make_endpoint()
    worker = make_worker(settings=endpoint)
    found = make_status(endpoint, worker, problem=PlanError(reason, "What to do."), children={})
    assert told(found)[where] == told(found)["Ready"] == ("False", reason.value)
    assert told(found)["Stalled"] == ("True", reason.value)
    assert condition(found, "Stalled").message == "What to do."
    assert told(found)["Available"][0] == "True", "what runs goes on"
    if where == "ResolvedRefs":
        assert (
            "The API server validates the pods once every referenced object exists."
            in condition(found, "Accepted").message
        )


def test_what_is_being_deleted_is_waited_for_without_alarm(make_endpoint, make_status, condition):
    whole = make_status(make_endpoint(), problem=PlanError(Reason.PENDING, "x is being deleted"))
    assert condition(whole, "UpToDate").message.endswith(
        "could not apply the current revision: x is being deleted."
    )
    found = told(whole)
    assert found["Accepted"][0] == "True"
    assert found["Stalled"][0] == "False"
    assert found["Reconciling"][0] == "True"
    assert found["Ready"][0] == "False"


def test_missing_claims_are_named(make_endpoint, make_status, condition):
    cache = {"persistentVolumeClaim": {"claimName": "models"}}
    endpoint = make_endpoint(model={"uri": "pvc://weights/m"}, cache=cache)
    found = make_status(endpoint, claims=frozenset({"models"}))
    assert told(found)["ResolvedRefs"] == ("False", "ClaimNotFound")
    assert (
        "The PersistentVolumeClaim 'weights' does not exist in the namespace team-a."
        in condition(found, "ResolvedRefs").message
    )
    assert told(make_status(endpoint, claims=frozenset({"models", "weights"})))["ResolvedRefs"][0] == "True"


def test_a_missing_secret_is_seen_from_the_kubelet(make_endpoint, make_status, make_pod):
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    pod = make_pod(
        "w", ready=False, phase="Pending", container={"state": {"waiting": waiting}, "started": False}
    )
    found = told(make_status(make_endpoint(), pod))
    assert found["ResolvedRefs"] == ("False", "SecretNotFound")
    assert found["Ready"] == ("False", "SecretNotFound")


def test_a_spec_that_cannot_be_read_leaves_the_rest_as_it_was(make_endpoint, make_status, make_worker, noon):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker(settings=endpoint))
    found = invalid_spec_status(replace(endpoint, generation=2, status=before), "spec.x: no", noon)
    assert told(found)["Accepted"] == told(found)["Ready"] == ("False", "InvalidSpec")
    assert told(found)["Stalled"] == ("True", "InvalidSpec")
    assert (found.ready_replicas, found.observed_generation) == (1, 2)
    assert set(told(invalid_spec_status(endpoint, "m", noon))) == {c.value for c in Condition}


def test_of_a_spec_that_is_read_in_part_what_runs_is_reported(
    make_endpoint, make_plan, make_status, make_worker, living, condition
):
    endpoint = make_endpoint(model={"uri": "hf://o/n", "name": "mine"}, frontend={"mode": "None"})
    before = make_status(endpoint, make_worker(settings=endpoint))
    read = replace(make_endpoint(replicas=2), generation=2, status=before)
    pods = [make_worker(f"w-{number}", settings=endpoint) for number in (1, 2)]
    observed = living(make_plan(make_endpoint(replicas=2)), pods=pods)
    found = partial_spec_status(read, observed, PlanError(Reason.INVALID_SPEC, "model.name: no"))
    assert told(found)["Ready"] == told(found)["Accepted"] == ("False", "InvalidSpec")
    assert told(found)["Available"] == ("True", "Available")
    assert (found.replicas, found.ready_replicas, found.observed_generation) == (2, 2, 2)
    assert (found.model_name, found.url) == ("mine", before.url), "what was not read is as it was"
    assert partial_spec_status(replace(read, status=None), observed, PlanError(Reason.INVALID_SPEC, "m")).url


def test_last_transition_moves_only_with_the_status(make_endpoint, make_status, make_worker, condition, noon):
    endpoint = make_endpoint(replicas=2)
    bad = [make_worker("w-1", "Stalled", settings=endpoint), make_worker("w-2", settings=endpoint)]
    first = make_status(endpoint, *bad)
    worse = [make_worker("w-1", "Dead", settings=endpoint), make_worker("w-2", settings=endpoint)]
    second = make_status(replace(endpoint, status=first), *worse, now=noon + timedelta(hours=1))
    assert told(second)["Generating"] == ("False", "EngineDead")
    assert condition(second, "Generating").last_transition_time == "2026-01-01T12:00:00Z"
    well = [make_worker(f"w-{i}", settings=endpoint) for i in (1, 2)]
    third = make_status(replace(endpoint, status=second), *well, now=noon + timedelta(hours=2))
    assert condition(third, "Generating").last_transition_time == "2026-01-01T14:00:00Z"
    assert condition(third, "Accepted").last_transition_time == "2026-01-01T12:00:00Z"


def test_a_new_leader_keeps_what_was_known(make_endpoint, make_status, make_worker, make_pod, noon):
    endpoint = make_endpoint(replicas=2)
    before = make_status(endpoint, *three(make_worker, endpoint, "Generating", "Busy"))
    unheard = [make_pod("w-0", StreamState()), make_pod("w-1", StreamState())]
    again = make_status(replace(endpoint, status=before), *unheard, now=noon + timedelta(seconds=5))
    assert again == before
    refused = StreamState(
        error="ConnectionRefusedError"
    )  # a policy that does not know the new leader's pod yet
    tried = [make_pod("w-0", refused), make_pod("w-1", refused)]
    assert make_status(replace(endpoint, status=before), *tried, now=noon + timedelta(seconds=6)) == before
    lost = [
        make_pod("w-0", StreamState(grace_expired=True, error="refused")),
        make_pod("w-1", StreamState(grace_expired=True)),
    ]
    late = make_status(replace(endpoint, status=before), *lost, now=noon + timedelta(seconds=15))
    assert told(late)["Generating"] == ("Unknown", "WorkerUnreachable")
    assert told(late)["Available"] == ("True", "Available"), "counts come from the pods' readiness"


def test_a_new_spec_is_not_resolved_by_what_was_known(make_endpoint, make_status, make_worker, make_pod):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    newer = make_endpoint(generation=2, healthCheck={"level": "Standard"}, before=before)
    assert told(make_status(newer, make_pod("w", StreamState())))["ConfigurationResolved"] == (
        "Unknown",
        "Pending",
    )


def test_reasons_are_those_of_the_contract(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint(replicas=2)
    for verdict in ("Generating", "Busy", "Stalled", "Failing", "Dead", "Starting", "Disabled"):
        found = make_status(endpoint, *three(make_worker, endpoint, verdict, "Generating"))
        for entry in found.conditions:
            kind = Condition(entry.type)
            if kind not in (Condition.READY, Condition.STALLED, Condition.RECONCILING):
                assert entry.reason in CONDITION_REASONS[kind], (kind, entry.reason)
            assert ConditionStatus(entry.status)
