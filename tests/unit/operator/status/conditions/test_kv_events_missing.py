"""``KVEventsMissing``: clients get answers, but a frontend does not know the KV cache of a ready replica."""

import pytest

from tests.unit.operator.conftest import instance_id
from tests.unit.operator.status.cluster_states import BOTH, became_ready
from vllmendpoint_api import names

SINCE = "2026-01-01T11:59:00Z"
CAUSE = "The worker publishes no KV events. See the log of the worker."
ANSWERED = "2 of 2 ready replicas answer through 1 of 1 frontend."


@pytest.fixture
def status_of(make_endpoint, make_status, make_worker, make_frontend, child, make_plan):
    """The status of an endpoint with KV routing, two workers of its revision and a frontend."""

    def find(events, *, before=None, kv_routing=True, workers=None, revision=None, **frontend):
        endpoint = make_endpoint(replicas=2, frontend={"routing": {"mode": "KV"}}, before=before)
        template = child(make_plan(endpoint), "Deployment", "smollm-workers")["spec"]["template"]
        current = template["metadata"]["labels"][names.LABEL_REVISION]
        labels = {names.LABEL_REVISION: revision or current, "pod-template-hash": "new"}
        pods = workers or [
            make_worker(name, settings=endpoint, metadata={"labels": labels}) for name in ("w-1", "w-2")
        ]
        routes = [
            {
                "instanceId": instance_id(name),
                "namespace": "n",
                "state": state,
                "since": SINCE,
                "kvEvents": {"since": SINCE, **events.get(name, {"state": "Received"})},
            }
            for name, state in BOTH.items()
        ]
        report = {"routes": routes, "kvRouting": kv_routing}
        pod = make_frontend("f-1", BOTH, report=report, **frontend)
        return make_status(endpoint, *pods, frontends=(pod,))

    return find


MISSING = {"w-2": {"state": "Missing", "message": CAUSE}}


def test_missing_events_are_named_and_serving_and_ready_stay_true(status_of, finding):
    found = status_of(MISSING)
    message = (
        f"{ANSWERED} 1 of 2 ready replicas sends no KV events to a frontend (pod w-2): frontend pod f-1 "
        f"selects pod w-2 by its load only, and its clients get answers. {CAUSE}"
    )
    assert finding(found, "Serving") == ("True", "KVEventsMissing", message)
    status, reason, ready = finding(found, "Ready")
    assert (status, reason) == ("True", "Ready")
    assert ready.endswith(message)
    assert found.routed_replicas == 2
    (frontend,) = found.frontends
    assert (frontend.ready, frontend.reason, frontend.routed_replicas) == (True, "KVEventsMissing", 2)
    assert frontend.message.endswith(CAUSE)


@pytest.mark.parametrize("events", [{}, {"w-1": {"state": "Pending"}, "w-2": {"state": "Received"}}])
def test_received_and_pending_events_are_no_problem(status_of, finding, events):
    found = status_of(events)
    assert finding(found, "Serving") == ("True", "Serving", ANSWERED)
    assert found.frontends[0].reason == ""


def test_frontends_that_do_not_route_by_events_are_not_judged(status_of, finding):
    assert finding(status_of(MISSING, kv_routing=False), "Serving")[1] == "Serving"


def test_replicas_of_an_older_revision_are_left_to_the_rollout(status_of, finding):
    assert finding(status_of(MISSING, revision="older"), "Serving")[1] == "Serving"


def test_a_frontend_that_became_ready_a_moment_ago_is_not_judged_yet(status_of, finding):
    young = {"conditions": became_ready("2026-01-01T11:59:57Z")}
    assert finding(status_of(MISSING, **young), "Serving")[1] == "Serving"


def test_a_route_that_does_not_answer_has_priority(
    make_endpoint, make_status, make_worker, make_frontend, finding, status_of
):
    endpoint = make_endpoint(replicas=2, frontend={"routing": {"mode": "KV"}})
    workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    frontend = make_frontend("f-1", {"w-1": "Answered", "w-2": "Failing"}, report={"kvRouting": True})
    found = make_status(endpoint, *workers, frontends=(frontend,))
    assert finding(found, "Serving")[:2] == ("False", "NotRouted")


def test_the_time_of_the_transition_changes_only_with_the_status(status_of, make_endpoint, condition):
    first = status_of({})
    second = status_of(MISSING, before=first)
    assert (
        condition(second, "Serving").last_transition_time == condition(first, "Serving").last_transition_time
    )
