"""``Serving``: frontends that do not answer, do not start, are unreachable or outdated."""

import pytest

from tests.unit.operator.status.cluster_states import BOTH, BROKEN
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.status.routes import settling_seconds

NOT_ANSWERING = {
    "its HTTP server hangs": (
        {"ready": False, "report": BROKEN},
        "the HTTP server of pod f-1 does not respond. No response within 5 s. ",
    ),
    "before the kubelet notices": (
        {"ready": True, "report": BROKEN},
        "the HTTP server of pod f-1 does not respond. No response within 5 s. ",
    ),
    "its process hangs": (
        {"ready": False, "silent": True},
        "pod f-1 responds neither to the kubelet's readiness probe nor to the operator. ",
    ),
    "its process has hung for 15 s": (
        {"ready": False, "connected": False, "error": "no report within 15 s"},
        "pod f-1 responds neither to the kubelet's readiness probe nor to the operator. ",
    ),
}


@pytest.mark.parametrize("case", NOT_ANSWERING)
@pytest.mark.parametrize("others", [0, 1])
def test_a_frontend_that_does_not_answer_is_reported_with_the_effect(make_frontend, serving_of, case, others):
    state, cause = NOT_ANSWERING[case]
    bad = make_frontend("f-1", BOTH, **state)
    status, reason, message = serving_of(bad, *[make_frontend("f-2", BOTH)][:others])
    assert (status, reason) == ("False", "FrontendNotAnswering")
    count = f"1 of {others + 1} frontend pod{'s' if others else ''} is not answering: "
    effect = "Clients' requests go to the other frontends" if others else "The endpoint accepts no requests"
    remedy = "See the log of pod f-1, or delete the pod to replace it."
    assert message == f"{count}{cause}{effect}. {remedy}"


def test_a_starting_frontend_is_not_reported_as_not_answering(make_frontend, serving_of):
    stage = {"name": "Importing", "since": "2026-01-01T11:59:55Z"}
    starting = make_frontend("f-1", ready=False, report={**BROKEN, "stage": stage})
    assert serving_of(starting)[:2] == ("Unknown", "Pending")
    assert serving_of(starting, make_frontend("f-2", BOTH))[1:] == (
        "Serving",
        "2 of 2 ready replicas answer through 1 of 2 frontends.",
    )


@pytest.mark.parametrize("started", [True, False])
def test_a_frontend_without_permission_for_discovery_is_named(make_frontend, serving_of, started):
    """Dynamo waits for the permission before it starts its HTTP server."""
    stage = {"name": "Importing", "since": "2026-01-01T11:59:00Z"}
    stuck = make_frontend(
        "f-1", ready=False, container={"started": started}, report={**BROKEN, "stage": stage}
    )
    cause = (
        "Frontend pod f-1 does not finish its start. Check that its ServiceAccount may list and watch "
        "EndpointSlices and DynamoWorkerMetadata, and see the log of the pod."
    )
    assert serving_of(stuck) == ("False", "NoRoute", f"The endpoint answers no requests. {cause}")
    message = f"2 of 2 ready replicas answer through 1 of 2 frontends. {cause}"
    assert serving_of(stuck, make_frontend("f-2", BOTH)) == ("True", "Serving", message)


def test_a_frontend_that_the_kubelet_finds_unready_is_judged_again_when_its_heartbeat_may_be_missing(
    make_plan, make_endpoint, make_observed, make_frontend
):
    planned = make_plan(make_endpoint())
    for state, seconds in (({}, 2), ({"silent": True}, None), ({"ready": True}, None)):
        frontend = make_frontend("f-1", BOTH, **{"ready": False, **state})
        assert settling_seconds(make_observed(planned, frontends=(frontend,))) == seconds


def test_one_witness_alone_does_not_prove_that_a_frontend_does_not_answer(make_frontend, serving_of):
    unreachable = make_frontend("f-1", BOTH, connected=False, error="timed out")
    assert serving_of(unreachable) == (
        "Unknown",
        "FrontendUnreachable",
        (
            "1 of 1 frontend pod is unreachable: the operator receives no report from port 9091 of pod f-1 "
            "(timed out), so its routes are unknown. Check that NetworkPolicies allow the operator to "
            "connect to it."
        ),
    )
    assert serving_of(make_frontend("f-2", BOTH), unreachable)[:2] == ("Unknown", "FrontendUnreachable")
    recent = make_frontend("f-1", BOTH, ready=False, connected=False, grace_expired=False)
    assert serving_of(recent, make_frontend("f-2", BOTH))[:2] == ("True", "Serving"), (
        "within the grace period"
    )


def test_frontends_of_an_earlier_release_are_not_judged(
    make_endpoint, make_status, make_worker, make_pod, make_frontend, finding
):
    endpoint = make_endpoint(replicas=2)
    workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    old = make_pod("f-old", StreamState(grace_expired=True))
    found = make_status(endpoint, *workers, frontends=(old,))
    assert finding(found, "Serving") == (
        "Unknown",
        "FrontendOutdated",
        (
            "1 of 1 frontend pod runs an earlier release that does not report its routes. Set "
            "spec.restartedAt to replace workers and frontends."
        ),
    )
    assert finding(found, "Ready")[:2] == ("True", "Ready")
    assert finding(found, "Reconciling")[0] == "False"
    assert (found.frontends[0].reason, found.frontends[0].ready) == ("FrontendOutdated", True)
    found = make_status(endpoint, *workers, frontends=(old, make_frontend("f-new", BOTH)))
    assert finding(found, "Serving")[2] == "2 of 2 ready replicas answer through 1 of 2 frontends."
