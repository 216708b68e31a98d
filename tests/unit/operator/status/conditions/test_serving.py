"""``Serving`` over an endpoint's life: all replicas answer, there are none, the first start, a new leader."""

from dataclasses import replace
from datetime import timedelta

from tests.unit.operator.status.cluster_states import BOTH, BROKEN, TERMINATING, became_ready
from vllmendpoint_operator.reports.state import StreamState


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
