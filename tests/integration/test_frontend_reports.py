"""Reports of frontends, and their effects on ``Serving``, ``Ready`` and ``status.frontends``."""

import time

import pytest

ANNOTATION = "serving.vllmendpoint.dev/settings-hash"
SINCE = "2026-01-01T00:00:00Z"


@pytest.fixture
def running(shared, make_endpoint, until):
    """An endpoint with a frontend and two workers, each with an instance ID and a route."""
    endpoint = make_endpoint().create(replicas=2)
    workers = endpoint.start_all(2)
    (frontend,) = endpoint.frontends
    for number, worker in enumerate(workers):
        worker.send_report(instanceId=str(number))
    set_routes(frontend, "Answered", "Answered")
    complete = {"readyReplicas": 2, "routedReplicas": 2}
    until(lambda: complete.items() <= endpoint.get()["status"].items(), "both have a route")
    endpoint.until("Ready", "True")
    return endpoint, frontend


def set_routes(frontend, *states):
    """The state of the route to each worker."""
    routes = [
        {
            "instanceId": str(number),
            "namespace": "n",
            "state": state,
            "message": "" if state == "Answered" else "The response had status 503",
            "since": SINCE,
        }
        for number, state in enumerate(states)
    ]
    frontend.send_report(routes=routes)


def test_a_missing_route_is_reported_immediately_and_recovers(running):
    endpoint, frontend = running
    (pod,) = (found["metadata"]["name"] for found in endpoint.pods("frontend"))
    set_routes(frontend, "Answered", "Failing")
    found = endpoint.until("Serving", "False", "NotRouted", seconds=8)
    assert found["message"].startswith("1 of 2 ready replicas does not answer through every frontend (pod ")
    assert f"The probes that frontend pod {pod} sends to pod " in found["message"]
    assert "fail. The response had status 503." in found["message"]
    assert endpoint.condition("Ready")["reason"] == "NotRouted"
    assert endpoint.condition("Generating")["status"] == "True"
    status = endpoint.get()["status"]
    assert (status["readyReplicas"], status["generatingReplicas"], status["routedReplicas"]) == (2, 2, 1)
    (entry,) = status["frontends"]
    assert (entry["name"], entry["reason"], entry["routedReplicas"]) == (pod, "NotRouted", 1)
    endpoint.until_event("NotRouted")
    set_routes(frontend, "Answered", "Answered")
    endpoint.until("Ready", "True")
    assert len(endpoint.events("NotRouted")) == 1


def test_a_frontend_that_does_not_answer_is_reported(running):
    endpoint, frontend = running
    frontend.send_report(answering=False, ready=False, message="No response within 5 s")
    found = endpoint.until("Serving", "False", "FrontendNotAnswering", seconds=8)
    assert "does not respond. No response within 5 s. The endpoint accepts no requests." in found["message"]
    frontend.send_report(answering=True, ready=True, message="")
    endpoint.until("Ready", "True")


def test_two_witnesses_are_needed_for_a_frontend_without_reports(running):
    endpoint, frontend = running
    frontend.close_streams()
    started = time.monotonic()
    endpoint.until("Serving", "Unknown", "FrontendUnreachable", seconds=25)
    assert time.monotonic() - started > 8
    (pod,) = endpoint.pods("frontend")
    endpoint.set_pod_status(pod, ready=False, address=frontend.server_address[0])
    endpoint.until("Serving", "False", "FrontendNotAnswering")
    assert endpoint.condition("Available")["reason"] == "FrontendUnavailable"
    restarted = type(frontend)(frontend.server_address[0], frontend.report["podUid"])
    endpoint.started.append(restarted)
    set_routes(restarted, "Answered", "Answered")
    endpoint.set_pod_status(pod, address=frontend.server_address[0])
    endpoint.until("Ready", "True")


def test_new_settings_refresh_the_frontend_without_a_restart(running, until):
    endpoint, _ = running
    (before,) = endpoint.pods("frontend")
    assert ANNOTATION not in before["metadata"].get("annotations", {})
    endpoint.patch(spec={"healthCheck": {"periodSeconds": 7}})
    until(
        lambda: ANNOTATION in endpoint.pods("frontend")[0]["metadata"].get("annotations", {}), "its refresh"
    )
    (after,) = endpoint.pods("frontend")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_frontends_of_an_endpoint_without_workers_are_rolled_out(shared, make_endpoint, until):
    """None of them is ready, so the Deployment controller must not wait for readiness."""
    endpoint = make_endpoint().create(replicas=0)

    def start_pods():
        started = {frontend.report["podUid"] for frontend in endpoint.frontends}
        for pod in endpoint.pods("frontend"):
            if pod["metadata"]["uid"] not in started:
                endpoint.start_frontend(pod, ready=False)

    def is_ready():
        start_pods()
        status = endpoint.get().get("status", {})
        ready = endpoint.condition("Ready")
        return (
            ready.get("reason") == "ScaledToZero"
            and status["observedGeneration"] == endpoint.get()["metadata"]["generation"]
        )

    until(is_ready, lambda: endpoint.get().get("status"))
    (before,) = endpoint.pods("frontend")
    template = {"metadata": {"annotations": {"note": "1"}}}
    endpoint.patch(spec={"frontend": {"podTemplate": template}})
    until(is_ready, lambda: endpoint.get().get("status"))
    (after,) = endpoint.pods("frontend")
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["metadata"]["annotations"]["note"] == "1"
    endpoint.patch(spec={"replicas": 1})

    def strategy():
        return endpoint.child("Deployment", "-frontend")["spec"]["strategy"]["rollingUpdate"]

    until(lambda: strategy() == {"maxSurge": "25%", "maxUnavailable": "25%"}, strategy)
