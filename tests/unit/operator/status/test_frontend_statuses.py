"""``status.frontends``: order, number, reasons and times of the entries."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.operator.status.cluster_states import TERMINATING, crashed
from vllmendpoint_api import MAX_FRONTENDS_IN_STATUS

ROUTE = {"w-1": "Answered"}


@pytest.fixture
def entries(make_endpoint, make_status, make_worker):
    def of(*frontends, before=None, **more):
        endpoint = make_endpoint(before=before)
        return make_status(endpoint, make_worker("w-1", settings=endpoint), frontends=frontends, **more)

    return of


def test_the_least_healthy_of_at_most_eight_frontends_come_first(entries, make_frontend, make_pod):
    good = [make_frontend(f"f-{number}", ROUTE) for number in range(8)]
    unready = make_pod("z-1", ready=False, container=crashed("no"))
    unrouted = make_frontend("y-1", {"w-1": "Failing"}, ready=True)
    leaving = make_frontend("a-1", ROUTE, metadata=TERMINATING)
    found = entries(leaving, *good, unrouted, unready).frontends
    assert len(found) == MAX_FRONTENDS_IN_STATUS
    assert [entry.name for entry in found] == ["z-1", "y-1", *(f"f-{number}" for number in range(6))]
    assert (found[0].reason, found[0].ready, found[0].restart_count) == ("CrashLooping", False, 3)


@pytest.mark.parametrize(
    ("frontend", "reason", "message"),
    [
        ({}, "NoRoute", "Pod f has no route to a ready replica. No worker answers."),
        (
            {"report": {"answering": False, "message": "It hangs"}},
            "NotReady",
            "The HTTP server of pod f does not respond. It hangs. See its log, or delete the pod",
        ),
        (
            {"report": {"stage": {"name": "Importing", "since": "2026-01-01T11:59:00Z"}}},
            "Starting",
            "Pod f is starting: stage Importing.",
        ),
        (
            {"report": {"stage": {"name": "Stopping", "since": "2026-01-01T11:59:00Z"}}},
            "NotReady",
            "Pod f is shutting down.",
        ),
        (
            {"ready": False, "routes": ROUTE},
            "Starting",
            "Pod f has a route to a replica, but the kubelet has not reported it as ready yet.",
        ),
        (
            {"ready": False, "connected": False, "container": {"ready": False}},
            "NotReady",
            "Pod f is not ready, and the operator receives no report from it",
        ),
        (
            {"ready": True, "routes": ROUTE, "connected": False},
            "FrontendUnreachable",
            "The operator receives no report from port 9091 of pod f (the stream ended).",
        ),
        (
            {"ready": True, "report": {"answering": False}},
            "FrontendNotAnswering",
            "The HTTP server of pod f does not respond.",
        ),
    ],
)
def test_an_entry_explains_why_its_frontend_does_not_serve(entries, make_frontend, frontend, reason, message):
    (found,) = entries(make_frontend("f", **frontend)).frontends
    assert found.reason == reason
    assert found.message.startswith(message)


def test_the_time_of_an_entry_changes_with_its_readiness_or_reason(entries, make_frontend, noon):
    first = entries(make_frontend("f", ROUTE))
    assert first.frontends[0].last_transition_time == "2026-01-01T12:00:00Z"
    later = noon + timedelta(hours=1)
    same = entries(make_frontend("f", ROUTE, container={"restartCount": 2}), before=first, now=later)
    assert same.frontends[0].last_transition_time == "2026-01-01T12:00:00Z"
    assert same.frontends[0].restart_count == 2
    changed = entries(make_frontend("f", {"w-1": "Failing"}, ready=True), before=first, now=later)
    assert changed.frontends[0].last_transition_time == "2026-01-01T13:00:00Z"


def test_a_removed_frontend_has_no_entry(make_endpoint, make_status, make_worker, make_frontend):
    before = make_status(make_endpoint(), make_worker("w-1"))
    assert before.frontends
    after = make_status(
        replace(make_endpoint(frontend={"mode": "None"}), status=before), make_worker("w-1"), frontends=()
    )
    assert after.frontends == ()
