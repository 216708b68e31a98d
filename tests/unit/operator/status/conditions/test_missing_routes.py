"""``Serving``: replicas without a route, and when a missing route counts."""

import pytest

from tests.unit.operator.status.cluster_states import BOTH, became_ready
from vllmendpoint_operator.status.routes import settling_seconds

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
