"""The whole status: its fields, its conditions, and what a new leader or an unreadable spec keeps."""

from dataclasses import replace
from datetime import timedelta

from vllmendpoint_api import (
    CONDITION_REASONS,
    Condition,
    ConditionStatus,
    Reason,
    custom_resource_definition,
)
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.status import invalid_spec_status, partial_spec_status

ALL_READY = {
    "Accepted": ("True", "Accepted"),
    "ResolvedRefs": ("True", "Resolved"),
    "ConfigurationResolved": ("True", "Resolved"),
    "Available": ("True", "Available"),
    "Generating": ("True", "Generating"),
    "Serving": ("True", "Serving"),
    "UpToDate": ("True", "UpToDate"),
    "Ready": ("True", "Ready"),
    "Reconciling": ("False", "Settled"),
    "Stalled": ("False", "Settled"),
}


def test_an_endpoint_whose_replicas_all_generate_is_ready(make_endpoint, make_status, make_workers, states):
    endpoint = make_endpoint(replicas=3)
    found = make_status(endpoint, *make_workers(endpoint, "Generating", "Busy", "Generating"))
    assert states(found) == ALL_READY
    counts = (found.replicas, found.ready_replicas, found.generating_replicas, found.updated_replicas)
    assert counts == (3, 3, 3, 3)
    assert found.health_check.source == "ModelDefault"
    assert found.health_check.payload == {"prompt": "1"}
    assert found.url == "http://smollm.team-a.svc:8000/v1"
    assert found.selector == (
        "app.kubernetes.io/component=worker,app.kubernetes.io/instance=smollm,app.kubernetes.io/name=vllmendpoint"
    )


def test_the_first_status_has_all_conditions(make_endpoint, make_status, states, message_of):
    found = make_status(make_endpoint(), frontends=())
    assert [entry.type for entry in found.conditions] == [kind.value for kind in Condition]
    assert all(entry.reason for entry in found.conditions)
    assert states(found)["Ready"] == ("False", "Starting")
    assert states(found)["Reconciling"][0] == "True"
    assert message_of(found, "Available") == (
        "0 of 1 replica is ready (minimum: 1). The pods of the Deployment smollm-workers are being created."
    )


def test_each_condition_has_a_reason_of_the_api_and_complete_sentences(
    make_endpoint, make_status, make_workers
):
    endpoint = make_endpoint(replicas=2)
    for verdict in ("Generating", "Busy", "Stalled", "Failing", "Dead", "Starting", "Disabled"):
        found = make_status(endpoint, *make_workers(endpoint, verdict, "Generating"))
        for entry in found.conditions:
            kind = Condition(entry.type)
            if kind not in (Condition.READY, Condition.STALLED, Condition.RECONCILING):
                assert entry.reason in CONDITION_REASONS[kind], (kind, entry.reason)
            assert ConditionStatus(entry.status)
            assert entry.message[0].isupper() or entry.message[0].isdigit(), entry.message
            assert entry.message.endswith("."), entry.message


def test_a_condition_changes_its_transition_time_only_with_its_status(
    make_endpoint, make_status, make_worker, states, condition, noon
):
    endpoint = make_endpoint(replicas=2)
    bad = [make_worker("w-1", "Stalled", settings=endpoint), make_worker("w-2", settings=endpoint)]
    first = make_status(endpoint, *bad)
    worse = [make_worker("w-1", "Dead", settings=endpoint), make_worker("w-2", settings=endpoint)]
    second = make_status(replace(endpoint, status=first), *worse, now=noon + timedelta(hours=1))
    assert states(second)["Generating"] == ("False", "EngineDead")
    assert condition(second, "Generating").last_transition_time == "2026-01-01T12:00:00Z"
    good = [make_worker(f"w-{i}", settings=endpoint) for i in (1, 2)]
    third = make_status(replace(endpoint, status=second), *good, now=noon + timedelta(hours=2))
    assert condition(third, "Generating").last_transition_time == "2026-01-01T14:00:00Z"
    assert condition(third, "Accepted").last_transition_time == "2026-01-01T12:00:00Z"


def test_a_new_leader_keeps_the_status_until_the_grace_period_of_the_reports_expires(
    make_endpoint, make_status, make_workers, make_pod, states, noon
):
    endpoint = make_endpoint(replicas=2)
    before = make_status(endpoint, *make_workers(endpoint, "Generating", "Busy"))
    later = replace(endpoint, status=before)

    def status_after(seconds, first, second):
        pods = make_pod("w-0", first), make_pod("w-1", second)
        return make_status(later, *pods, now=noon + timedelta(seconds=seconds))

    assert status_after(5, StreamState(), StreamState()) == before
    # A NetworkPolicy may not allow the new leader's pod yet.
    refused = StreamState(error="ConnectionRefusedError")
    assert status_after(6, refused, refused) == before
    found = status_after(
        15, StreamState(grace_expired=True, error="refused"), StreamState(grace_expired=True)
    )
    assert states(found)["Generating"] == ("Unknown", "WorkerUnreachable")
    assert states(found)["Available"] == ("True", "Available"), "the counts come from the pods' readiness"


def test_a_new_leader_does_not_apply_the_previous_finding_to_a_new_generation(
    make_endpoint, make_status, make_worker, make_pod, states
):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    newer = make_endpoint(generation=2, healthCheck={"level": "Standard"}, before=before)
    found = states(make_status(newer, make_pod("w", StreamState())))
    assert found["ConfigurationResolved"] == ("Unknown", "Pending")


def test_a_spec_that_cannot_be_read_changes_the_conditions_only(
    make_endpoint, make_status, make_worker, states, noon
):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker(settings=endpoint))
    found = invalid_spec_status(replace(endpoint, generation=2, status=before), "spec.x: no", noon)
    assert states(found)["Accepted"] == states(found)["Ready"] == ("False", "InvalidSpec")
    assert states(found)["Stalled"] == ("True", "InvalidSpec")
    assert (found.ready_replicas, found.observed_generation) == (1, 2)
    assert set(states(invalid_spec_status(endpoint, "m", noon))) == {kind.value for kind in Condition}


def test_a_spec_that_is_read_in_part_reports_the_running_pods(
    make_endpoint, make_plan, make_status, make_worker, make_observed, states
):
    endpoint = make_endpoint(model={"uri": "hf://o/n", "name": "mine"}, frontend={"mode": "None"})
    before = make_status(endpoint, make_worker(settings=endpoint))
    partial = replace(make_endpoint(replicas=2), generation=2, status=before)
    pods = [make_worker(f"w-{number}", settings=endpoint) for number in (1, 2)]
    observed = make_observed(make_plan(make_endpoint(replicas=2)), pods=pods)
    found = partial_spec_status(partial, observed, PlanError(Reason.INVALID_SPEC, "model.name: no"))
    assert states(found)["Ready"] == states(found)["Accepted"] == ("False", "InvalidSpec")
    assert states(found)["Available"] == ("True", "Available")
    assert (found.replicas, found.ready_replicas, found.observed_generation) == (2, 2, 2)
    assert (found.model_name, found.url) == ("mine", before.url), "fields that were not read stay"
    problem = PlanError(Reason.INVALID_SPEC, "m")
    assert partial_spec_status(replace(partial, status=None), observed, problem).url


HANDLERS = {
    "scriptDigest": "d",
    "ping": {"source": "Spec", "handler": "model:p"},
    "invocations": {"source": "Spec", "handler": "model:i"},
}


def schema_fields(node, path=()):
    properties = node.get("properties") or node.get("items", {}).get("properties")
    if not properties:
        return {".".join(path)}
    return {field for name, value in properties.items() for field in schema_fields(value, (*path, name))}


def set_fields(value, path=()):
    """Paths of the fields that are set; the items of a list have the path of the list."""
    if isinstance(value, dict) and path != ("healthCheck", "payload"):
        return {field for name, inner in value.items() for field in set_fields(inner, (*path, name))}
    if isinstance(value, list | tuple):
        return {field for item in value for field in set_fields(item, path)}
    return set() if value in ("", None, 0) and value is not False else {".".join(path)}


def test_every_field_of_the_crd_can_be_set(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend
):
    endpoint = make_endpoint(replicas=40, prefill={})
    report = {
        "healthCheck__ignored": [{"source": "Environment", "reason": "outranked"}],
        "handlers": HANDLERS,
        "verdict__reason": "UnexpectedAnswer",
        "verdict__message": "no match",
    }
    bad = make_worker("bad", "Failing", settings=endpoint, report=report, container={"restartCount": 1})
    good = [
        make_worker(f"w-{number:02}", settings=endpoint, report=report | {"verdict__reason": ""})
        for number in range(39)
    ]
    routes = {"w-00": "Failing"} | {f"w-{number:02}": "Answered" for number in range(1, 39)}
    frontends = (
        make_frontend("f-1", {pod.name: "Answered" for pod in good}),
        make_frontend("f-2", routes, container={"restartCount": 1}),
    )
    prefill = make_prefill(settings=endpoint)
    status = make_status(endpoint, bad, *good, prefill, frontends=frontends).wire() | {
        "operator": "written by the reconciler"
    }
    (version,) = custom_resource_definition()["spec"]["versions"]
    expected = schema_fields(version["schema"]["openAPIV3Schema"]["properties"]["status"])
    assert set_fields(status) == expected


def test_the_health_check_and_the_handlers_disappear_with_the_last_worker(
    make_endpoint, make_status, make_worker
):
    before = make_status(make_endpoint(), make_worker("w"))
    assert before.health_check is not None
    assert before.handlers is not None
    after = make_status(make_endpoint(replicas=0, before=before))
    assert after.health_check is after.handlers is None


def test_the_image_of_a_revision_is_the_main_containers(make_endpoint, make_status):
    assert make_status(make_endpoint()).revision.image == "registry.example/worker:1"
    changed = {"spec": {"containers": [{"name": "main", "image": "other:1"}]}}
    assert make_status(make_endpoint(worker={"podTemplate": changed})).revision.image == "other:1"
