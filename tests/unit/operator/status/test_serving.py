"""``Serving``: which frontends answer, and which replicas answer through them."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.operator.status.cluster_states import TERMINATING
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.status.routes import settling_seconds

BOTH = {"w-1": "Answered", "w-2": "Answered"}
BROKEN = {"answering": False, "ready": False, "message": "No response within 5 s."}


def became_ready(at):
    return [{"type": "Ready", "status": "True", "lastTransitionTime": at}]


@pytest.fixture
def serving_of(make_endpoint, make_status, make_worker, finding):
    """The finding of an endpoint with the ready workers w-1 and w-2 and these frontends."""

    def find(*frontends, workers=None, before=None, now=None, replicas=2):
        endpoint = make_endpoint(replicas=replicas, before=before)
        if workers is None:
            workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
        more = {} if now is None else {"now": now}
        return finding(make_status(endpoint, *workers, frontends=frontends, **more), "Serving")

    return find


def test_all_replicas_answer_through_all_frontends(make_frontend, serving_of):
    found = serving_of(make_frontend("f-1", BOTH), make_frontend("f-2", BOTH))
    assert found == ("True", "Serving", "2 of 2 ready replicas answer through 2 of 2 frontends.")
    assert serving_of(make_frontend("f-1", BOTH))[2].endswith(" through 1 of 1 frontend.")


def test_missing_frontends_are_counted(make_endpoint, make_status, make_worker, make_frontend, message_of):
    endpoint = make_endpoint(frontend={"replicas": 3})
    frontend = make_frontend("f-1", {"w-1": "Answered"})
    found = make_status(endpoint, make_worker("w-1", settings=endpoint), frontends=(frontend,))
    assert message_of(found, "Serving") == "1 of 1 ready replica answers through 1 of 3 frontends."


def test_an_endpoint_without_a_frontend_names_the_url_of_the_workers(
    make_endpoint, make_status, make_worker, finding
):
    found = make_status(make_endpoint(frontend={"mode": "None"}), make_worker(), frontends=())
    assert finding(found, "Serving") == (
        "True",
        "NoFrontend",
        (
            "The endpoint has no frontend because frontend.mode is None. Clients connect to the workers' "
            "Service: http://smollm-workers.team-a.svc:8080/v1."
        ),
    )
    assert found.routed_replicas == 0


def test_an_endpoint_with_0_replicas_is_ready_without_routes(
    make_endpoint, make_status, make_frontend, make_worker, finding
):
    endpoint = make_endpoint(replicas=0)
    found = make_status(endpoint, frontends=(make_frontend("f-1"),))
    assert finding(found, "Serving")[:2] == ("Unknown", "ScaledToZero")
    assert finding(found, "Ready")[:2] == ("True", "ScaledToZero")
    leaving = make_worker("w-1", settings=make_endpoint())
    found = make_status(endpoint, leaving, frontends=(make_frontend("f-1", {"w-1": "Answered"}),))
    assert finding(found, "Serving")[:2] == ("True", "Serving"), "a pod still serves"


def test_serving_is_pending_until_a_frontend_has_started(make_pod, make_frontend, serving_of):
    new = make_frontend("f-1", ready=False, container={"started": False})
    leaving = make_frontend("f-2", BOTH, metadata=TERMINATING)
    failed = make_pod("f-3", ready=False, phase="Failed")
    for frontends in ((), (new,), (leaving,), (failed,)):
        status, reason, message = serving_of(*frontends)
        assert (status, reason) == ("Unknown", "Pending")
        assert message == "No frontend pod has started. See the condition Available."


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


UNDISCOVERED = (
    "Frontend pod f-1 has not discovered pod w-2, so it sends no requests to it. Check that the frontend's "
    "ServiceAccount may watch EndpointSlices and DynamoWorkerMetadata."
)
FAILING = (
    "The probes that frontend pod f-1 sends to pod w-2 fail. w-2 is Failing. Clients' requests on this route "
    "may fail too. Check the NetworkPolicies between the pods, and their nodes."
)
NOT_ACCEPTED = (
    "Frontend pod f-1 sends no requests to pod w-2, because the model card of the pod differs from that of "
    "the other replicas of its Dynamo namespace. Check that all replicas load the same model files and "
    "options, then delete pod w-2."
)


@pytest.mark.parametrize(
    ("routes", "cause"),
    [
        ({"w-1": "Answered"}, UNDISCOVERED),
        ({"w-1": "Answered", "w-2": "Failing"}, FAILING),
        ({"w-1": "Answered", "w-2": "NotAccepted"}, NOT_ACCEPTED),
    ],
    ids=["not discovered", "failing", "not accepted"],
)
def test_a_missing_route_is_reported_with_both_pods_and_the_remedy(
    make_frontend, make_endpoint, make_worker, make_status, finding, routes, cause
):
    endpoint = make_endpoint(replicas=2)
    workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    frontends = (make_frontend("f-1", routes), make_frontend("f-2", BOTH))
    found = make_status(endpoint, *workers, frontends=frontends)
    message = f"1 of 2 ready replicas does not answer through every frontend (pod w-2). {cause}"
    assert finding(found, "Serving") == ("False", "NotRouted", message)
    assert finding(found, "Ready") == finding(found, "Serving")
    assert (found.routed_replicas, found.ready_replicas) == (1, 2)
    assert [
        (entry.name, entry.routed_replicas, entry.reason, entry.message) for entry in found.frontends
    ] == [
        ("f-1", 1, "NotRouted", cause),
        ("f-2", 2, "", ""),
    ]


def test_several_replicas_without_a_route_are_counted(make_frontend, make_endpoint, make_worker, serving_of):
    endpoint = make_endpoint()
    workers = [make_worker(f"w-{number}", settings=endpoint) for number in (1, 2, 3)]
    frontends = (
        make_frontend("f-1", {"w-1": "Answered", "w-2": "Failing", "w-3": "Answered"}),
        make_frontend("f-2", {"w-1": "Answered", "w-2": "Answered", "w-3": "Failing"}),
    )
    message = serving_of(*frontends, workers=workers, replicas=3)[2]
    assert message.startswith(
        "2 of 3 ready replicas do not answer through every frontend (pod w-2 and 1 more). The probes that "
        "frontend pod f-1 sends to pod w-2 fail."
    )


def test_a_route_whose_first_probe_runs_is_not_reported(make_frontend, serving_of):
    assert serving_of(make_frontend("f-1", {"w-1": "Answered", "w-2": "Pending"})) == (
        "True",
        "Serving",
        "1 of 2 ready replicas answers through 1 of 1 frontend.",
    )


@pytest.mark.parametrize(("since", "reason"), [("11:59:55", "Serving"), ("11:59:50", "NotRouted")])
@pytest.mark.parametrize("new", ["worker", "frontend"])
def test_a_new_pod_has_ten_seconds_to_get_its_routes(
    make_endpoint, make_frontend, make_worker, serving_of, new, since, reason
):
    conditions = {"conditions": became_ready(f"2026-01-01T{since}Z")}
    endpoint = make_endpoint(replicas=2)
    workers = [
        make_worker("w-1", settings=endpoint),
        make_worker("w-2", settings=endpoint, **(conditions if new == "worker" else {})),
    ]
    frontend = make_frontend("f-1", {"w-1": "Answered"}, **(conditions if new == "frontend" else {}))
    assert serving_of(frontend, workers=workers)[1] == reason


def test_a_reconcile_follows_when_the_routes_of_a_new_pod_are_due(
    make_endpoint, make_plan, make_observed, make_worker, make_pod, make_frontend, noon
):
    planned = make_plan(make_endpoint())
    new = make_worker("w-1", conditions=became_ready("2026-01-01T11:59:57Z"))
    older = make_worker("w-2", conditions=became_ready("2026-01-01T11:59:00Z"))
    frontend = make_frontend("f-1", BOTH, conditions=became_ready("2026-01-01T11:59:59Z"))
    assert settling_seconds(make_observed(planned, pods=[new, older], frontends=(frontend,))) == 7
    assert settling_seconds(make_observed(planned, pods=[older], frontends=(frontend,))) == 9
    assert settling_seconds(make_observed(planned, pods=[older])) is None
    earlier = make_pod("f-0", conditions=became_ready("2026-01-01T11:59:59Z"))
    assert settling_seconds(make_observed(planned, pods=[new], frontends=(earlier,))) is None
    waiting = make_frontend("f", report={"stage": {"name": "Serving", "since": "2026-01-01T11:59:58Z"}})
    assert settling_seconds(make_observed(planned, pods=[older], frontends=(waiting,))) == 8
    ahead = make_worker("w-3", conditions=became_ready("2026-01-01T12:00:02Z"))
    assert settling_seconds(make_observed(planned, pods=[ahead])) == 12, "the node's clock is ahead"
    wrong = make_worker("w-4", conditions=became_ready("2026-01-01T13:00:00Z"))
    assert settling_seconds(make_observed(planned, pods=[wrong])) is None


def test_no_route_at_all_names_the_first_cause(make_frontend, serving_of):
    found = serving_of(make_frontend("f-1", {"w-1": "NotAccepted", "w-2": "Answered"}, ready=False))
    assert found[1] == "NoRoute"
    assert serving_of(make_frontend("f-1")) == (
        "False",
        "NoRoute",
        (
            "The endpoint answers no requests: none of 1 frontend has a route to a ready replica. "
            + UNDISCOVERED.replace("w-2", "w-1")
        ),
    )
    lonely = make_frontend("f-1", BOTH, ready=False)
    assert serving_of(lonely)[2] == (
        "The endpoint answers no requests: none of 1 frontend is ready. See the condition Available."
    )


def test_one_frontend_without_routes_is_named_while_the_other_serves(make_frontend, serving_of):
    status, reason, message = serving_of(make_frontend("f-1"), make_frontend("f-2", BOTH))
    assert (status, reason) == ("True", "Serving")
    assert message == (
        "2 of 2 ready replicas answer through 1 of 2 frontends. " + UNDISCOVERED.replace("w-2", "w-1")
    )


def test_the_first_start_is_pending_and_a_later_loss_of_all_replicas_is_not(
    make_endpoint, make_worker, make_frontend, make_status, finding
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    frontend = make_frontend("f-1")
    first = make_status(endpoint, loading, frontends=(frontend,))
    assert finding(first, "Serving") == ("Unknown", "Pending", "No replica is ready yet.")
    assert finding(first, "Available")[1] == "Starting"
    assert "f-1" not in finding(first, "Available")[2]
    ready = make_worker("w-1", settings=endpoint, conditions=became_ready("2026-01-01T11:59:59Z"))
    second = make_status(replace(endpoint, status=first), ready, frontends=(frontend,))
    assert finding(second, "Serving") == (
        "Unknown",
        "Pending",
        "No frontend has a route to a replica yet.",
    )
    assert finding(second, "Available")[:2] == ("False", "Starting")
    late = make_status(replace(endpoint, status=second), make_worker("w-1"), frontends=(frontend,))
    assert finding(late, "Serving")[:2] == ("False", "NoRoute")
    assert finding(late, "Available")[:2] == ("False", "FrontendUnavailable")
    served = make_status(endpoint, make_worker("w-1", settings=endpoint))
    lost = make_status(replace(endpoint, status=served), loading, frontends=(frontend,))
    assert finding(lost, "Serving") == (
        "False",
        "NoRoute",
        "The endpoint answers no requests: no replica is ready. See the condition Available.",
    )


@pytest.mark.parametrize("verdict", ["Stalled", "Failing", "Dead"])
def test_a_replica_that_does_not_generate_is_not_reported_as_not_routed(
    make_endpoint, make_worker, make_frontend, serving_of, verdict
):
    endpoint = make_endpoint(replicas=2)
    bad = make_worker("w-2", verdict, ready=True, settings=endpoint)
    good = make_worker("w-1", settings=endpoint)
    frontend = make_frontend("f-1", {"w-1": "Answered", "w-2": "Failing"})
    assert serving_of(frontend, workers=[good, bad])[:2] == ("True", "Serving")
    alone = make_frontend("f-1", {"w-2": "Failing"})
    assert serving_of(alone, workers=[bad], before=None)[2].endswith(
        "no ready replica generates. See the condition Generating."
    )


@pytest.mark.parametrize(("accepted", "reason"), [(2, "Serving"), (1, "NotRouted"), (0, "NoRoute")])
@pytest.mark.parametrize("without", ["instance IDs", "probes"])
def test_replicas_are_counted_if_they_cannot_be_identified(
    make_endpoint, make_worker, make_frontend, serving_of, without, accepted, reason
):
    endpoint = make_endpoint(replicas=2)
    report = {"instanceId": ""} if without == "instance IDs" else {}
    workers = [make_worker(name, settings=endpoint, report=report) for name in ("w-1", "w-2")]
    frontend = make_frontend(
        "f-1",
        ready=True,
        report={
            "probing": without != "probes",
            "accepted": [{"namespace": "n", "role": "aggregated", "workers": accepted}],
        },
    )
    found = serving_of(frontend, workers=workers)
    assert found[1] == reason
    if reason == "NotRouted":
        assert found[2].startswith("1 of 2 ready replicas is accepted by frontend pod f-1, which sends no")


def test_a_truncated_list_of_routes_has_no_missing_ones(
    make_endpoint, make_worker, make_frontend, serving_of
):
    routes = {f"w-{number}": "Answered" for number in range(256)}
    worker = make_worker("another", settings=make_endpoint())
    first = make_worker("w-0", settings=make_endpoint())
    assert serving_of(make_frontend("f-1", routes), workers=[first, worker])[1] == "Serving"


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


def test_a_new_leader_keeps_the_finding_until_the_first_reports(
    make_endpoint, make_status, make_worker, make_frontend, make_pod, noon
):
    endpoint = make_endpoint(replicas=2)
    workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    routes = {"w-1": "Answered", "w-2": "Failing"}
    frontend = make_frontend("f-1", routes)
    before = make_status(endpoint, *workers, frontends=(frontend,))
    later = replace(endpoint, status=before)

    def conditions_after(frontend, *workers):
        found = make_status(later, *workers, frontends=(frontend,), now=noon + timedelta(seconds=5))
        entries = {entry.type: entry for entry in found.conditions}
        return entries["Serving"], found.frontends, found.routed_replicas

    expected = conditions_after(frontend, *workers)
    silent = replace(frontend, stream=StreamState())
    assert conditions_after(silent, *workers) == expected
    unreported = [make_pod(name) for name in ("w-1", "w-2")]
    assert conditions_after(frontend, *unreported) == expected
    expired = replace(frontend, stream=StreamState(grace_expired=True))
    assert conditions_after(expired, *workers)[0].reason == "FrontendUnreachable"


def test_frontends_without_routes_do_not_keep_a_rollout_incomplete(
    make_endpoint, children_with, make_status, make_frontend, make_pod, states
):
    endpoint = make_endpoint(replicas=0)
    children = children_with(endpoint, "frontend", replicas=1, updatedReplicas=1)
    found = states(make_status(endpoint, children=children, frontends=(make_frontend("f-1"),)))
    assert found["UpToDate"] == ("True", "UpToDate")
    assert found["Reconciling"][0] == "False"
    hung = make_frontend("f-1", ready=False, report=BROKEN)
    found = states(make_status(endpoint, children=children, frontends=(hung,)))
    assert found["UpToDate"][0] == "False"
    found = states(make_status(endpoint, children=children, frontends=(make_frontend("f-1", BOTH),)))
    assert found["UpToDate"] == ("False", "RollingOut"), "the pod is ready, but not available yet"
