"""``Available``: replicas that start, and the frontend."""

from dataclasses import replace

import pytest

FRONTEND_DOWN = "0 of 1 frontend pod is ready, so the endpoint accepts no requests."


def test_enough_ready_replicas_and_a_ready_frontend_are_available(
    make_endpoint, make_status, make_worker, finding
):
    endpoint = make_endpoint(replicas=2)
    found = make_status(endpoint, *[make_worker(f"w-{number}", settings=endpoint) for number in range(2)])
    assert finding(found, "Available") == ("True", "Available", "2 of 2 replicas are ready.")


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("model data: 123 of 2000000000 bytes, 4 objects", "(model data: 0 % of 2.0 GB, 4 objects)"),
        ("model data: 1199999999 of 2000000000 bytes, 4 objects", "(model data: 50 % of 2.0 GB, 4 objects)"),
        ("model data: 35999999 of 36000001 bytes, 1 objects", "(model data: 90 % of 37 MB, 1 objects)"),
        ("model data: 0 of 0 bytes, 0 objects", "(model data: 0 of 0 bytes, 0 objects)"),
        ("team/model", "(team/model)"),
    ],
)
def test_the_progress_of_a_download_is_shown_in_steps_of_10_percent(
    make_endpoint, make_status, make_worker, message_of, detail, shown
):
    endpoint = make_endpoint()
    report = {"stage__name": "Downloading", "stage__detail": detail}
    found = make_status(endpoint, make_worker("w-1", "Starting", settings=endpoint, report=report))
    assert f"is starting: stage Downloading {shown} since 11:50:00 UTC" in message_of(found, "Available")


def test_the_endpoint_is_not_available_without_a_ready_frontend(
    make_endpoint, make_status, make_worker, make_pod, states, message_of
):
    endpoint = make_endpoint()
    worker = make_worker(settings=endpoint)
    found = make_status(endpoint, worker, frontends=(make_pod("f", ready=False),))
    assert states(found)["Available"] == ("False", "Starting")
    assert message_of(found, "Available").startswith(f"{FRONTEND_DOWN} Pod f is starting")
    found = make_status(endpoint, worker, frontends=())
    expected = f"{FRONTEND_DOWN} The pods of the Deployment smollm-frontend are being created."
    assert message_of(found, "Available") == expected
    without = make_endpoint(frontend={"mode": "None"})
    assert states(make_status(without, worker, frontends=()))["Available"][0] == "True"


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "404"}}, "cannot pull the image"),
        (
            {"waiting": {"reason": "CreateContainerConfigError", "message": "no"}},
            "cannot start its container",
        ),
    ],
)
def test_a_frontend_that_cannot_start_is_reported_while_the_workers_load(
    make_endpoint, make_status, make_pod, make_worker, finding, state, cause
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    broken = make_pod("f-1", ready=False, container={"state": state, "started": False})
    _, reason, message = finding(make_status(endpoint, loading, frontends=(broken,)), "Available")
    assert reason == "FrontendUnavailable"
    assert f" {FRONTEND_DOWN} Pod f-1 {cause}" in message


def test_a_starting_frontend_is_not_reported_while_the_workers_load(
    make_endpoint, make_status, make_pod, make_worker, finding
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    frontend = make_pod("f-1", ready=False, container={"started": False})
    _, reason, message = finding(make_status(endpoint, loading, frontends=(frontend,)), "Available")
    assert reason == "Starting"
    assert "frontend" not in message


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"running": {"startedAt": "2026-01-01T11:50:00Z"}}, "Starting"),
        ({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "FrontendUnavailable"),
    ],
)
def test_only_a_frontend_that_cannot_start_is_unavailable(
    make_endpoint, make_pod, make_status, make_worker, finding, state, reason
):
    endpoint = make_endpoint()
    frontend = make_pod("f-1", ready=False, container={"state": state, "started": False})
    found = make_status(endpoint, make_worker(settings=endpoint), frontends=(frontend,))
    assert finding(found, "Available")[:2] == ("False", reason)


@pytest.mark.parametrize("verdict", ["Stalled", "Failing"])
def test_mode_observe_reports_a_verdict_and_keeps_the_replica_available(
    make_endpoint, make_status, make_worker, finding, verdict
):
    endpoint = make_endpoint(replicas=2, healthCheck={"mode": "Observe"})
    bad = make_worker("w-1", verdict, ready=True, settings=endpoint, report={"ready": True})
    found = make_status(endpoint, bad, make_worker("w-2", settings=endpoint))
    assert finding(found, "Available")[:2] == ("True", "Available")
    assert finding(found, "UpToDate")[0] == "True"
    assert finding(found, "Generating")[0] == "False"
    assert (found.ready_replicas, found.generating_replicas) == (2, 1)


def test_a_new_leader_keeps_the_finding_about_a_hanging_worker(
    make_endpoint, make_status, make_worker, make_pod, finding
):
    endpoint = make_endpoint()
    hung = make_worker("w-1", ready=False, connected=False, error="silent", settings=endpoint)
    before = make_status(endpoint, hung)
    assert finding(before, "Available")[1] == "NotReady"
    without_report = make_pod("w-1", ready=False)
    after = make_status(replace(endpoint, status=before), without_report)
    assert finding(after, "Available") == finding(before, "Available")
    well = make_status(endpoint, make_worker("w-1", settings=endpoint))
    assert finding(well, "Available")[0] == "True"
    after = make_status(replace(endpoint, status=well), without_report)
    assert finding(after, "Available")[0] == "False", "the pod's readiness needs no report"
