"""The status of an endpoint with ``spec.prefill``: both roles count, and messages name the role."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.operator.status.cluster_states import NO_GPU, TERMINATING
from vllmendpoint_api import names
from vllmendpoint_operator.status import endpoint_status

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOTH = {"w-1": "Answered", "p-1": "Answered"}


@pytest.fixture
def status_of(make_endpoint, make_status, make_worker, make_prefill, make_frontend):
    """The status with these verdicts and routes. None as a verdict: the pod does not exist."""

    def of(decode="Generating", prefill="Generating", *, routes=BOTH, frontends=None, before=None, **more):
        endpoint = make_endpoint(prefill={}, before=before)
        since = [{"type": "Ready", "status": "True", "lastTransitionTime": NOON.isoformat()}]
        ready = {"conditions": since} if "now" in more else {}
        pods = [
            make("w-1" if make is make_worker else "p-1", verdict, settings=endpoint, **ready)
            for make, verdict in ((make_worker, decode), (make_prefill, prefill))
            if verdict is not None
        ]
        found = (make_frontend("f-1", routes),) if frontends is None else frontends
        return make_status(endpoint, *pods, frontends=found, **more)

    return of


def test_healthy_pairs_are_ready_and_counted_by_role(
    make_endpoint, make_status, make_worker, make_prefill, finding
):
    endpoint = make_endpoint(replicas=2, prefill={"replicas": 1})
    pods = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    found = make_status(endpoint, *pods, make_prefill(settings=endpoint))
    assert (found.replicas, found.ready_replicas, found.generating_replicas) == (2, 2, 2)
    assert (found.updated_replicas, found.routed_replicas) == (2, 2)
    assert found.prefill.wire() == {
        "replicas": 1,
        "updatedReplicas": 1,
        "readyReplicas": 1,
        "generatingReplicas": 1,
    }
    assert {worker.name: worker.role for worker in found.workers} == {
        "w-1": "Decode",
        "w-2": "Decode",
        "p-1": "Prefill",
    }
    count = "2 of 2 {0}replicas and 1 of 1 {0}prefill replica are {1}."
    assert finding(found) == ("True", "Ready", count.format("", "generating"))
    assert finding(found, "Available")[2] == count.format("", "ready")
    assert finding(found, "Generating")[2] == count.format("started ", "generating")
    assert finding(found, "Serving")[2] == (
        "2 of 2 ready replicas and 1 of 1 ready prefill replica answer through 1 of 1 frontend."
    )
    assert finding(found, "UpToDate")[:2] == ("True", "UpToDate")


def test_without_prefill_the_status_has_no_roles(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint()
    found = make_status(endpoint, make_worker(settings=endpoint)).wire()
    assert "prefill" not in found
    assert "role" not in found["workers"][0]


@pytest.mark.parametrize(
    ("decode", "prefill", "expected"),
    [
        (
            "Generating",
            "Stalled",
            "1 of 1 prefill replica is not generating: the engine in pod p-1 is stalled.",
        ),
        ("Stalled", "Generating", "1 of 1 replica is not generating: the engine in pod w-1 is stalled."),
        (
            "Stalled",
            "Failing",
            "1 of 1 replica and 1 of 1 prefill replica are not generating: the engine in pod w-1 is stalled.",
        ),
    ],
)
def test_generating_names_the_role_that_does_not_generate(status_of, finding, decode, prefill, expected):
    found = status_of(decode, prefill)
    status, reason, message = finding(found, "Generating")
    assert (status, reason) == ("False", "EngineStalled")
    assert message.startswith(f"{expected} ")
    assert found.generating_replicas == (decode == "Generating")
    assert found.prefill.generating_replicas == (prefill == "Generating")


@pytest.mark.parametrize(
    ("decode", "prefill", "role"),
    [("Starting", "Generating", "worker"), ("Generating", None, "prefill worker")],
)
def test_generating_is_unknown_until_a_worker_of_each_role_has_started(
    status_of, finding, decode, prefill, role
):
    assert finding(status_of(decode, prefill), "Generating") == (
        "Unknown",
        "NoWorkers",
        f"No {role} has started yet.",
    )


FAILING = {"w-1": "Failing", "p-1": "Failing"}
REMEDY = (
    "Check that NetworkPolicies allow the endpoint's pods to connect to each other at port 5600 (the side "
    "channel of NIXL) and at the ports of UCX, which UCX_TCP_PORT_RANGE sets, and that both roles have the "
    "same connector in --kv-transfer-config."
)


def test_a_pair_that_fails_although_both_engines_generate_is_a_failed_transfer(status_of, finding):
    found = status_of(routes=FAILING)
    assert finding(found, "Generating") == (
        "False",
        "TransferFailed",
        (
            "1 of 1 replica and 1 of 1 prefill replica are not generating for clients: the engine in pod p-1 "
            "generates, but all probes of frontends that transfer a KV cache from it to a decode worker fail."
            f" p-1 is Failing. {REMEDY}"
        ),
    )
    assert finding(found, "Serving")[:2] == ("False", "NoRoute")
    assert finding(found)[:2] == ("False", "FrontendUnavailable"), "no frontend without a route is ready"
    assert (found.generating_replicas, found.prefill.generating_replicas) == (0, 0)
    assert [(worker.verdict, worker.reason, worker.message) for worker in found.workers] == [
        ("Generating", "TransferFailed", "p-1 is Failing."),
        ("Generating", "TransferFailed", "w-1 is Failing."),
    ]


def test_one_worker_whose_pairs_fail_does_not_count(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding
):
    endpoint = make_endpoint(replicas=2, prefill={"replicas": 2})
    pods = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
    pods += [make_prefill(name, settings=endpoint) for name in ("p-1", "p-2")]
    routes = {pod.name: "Failing" if pod.name == "w-2" else "Answered" for pod in pods}
    found = make_status(endpoint, *pods, frontends=(make_frontend("f-1", routes),))
    status, reason, message = finding(found, "Generating")
    assert (status, reason) == ("False", "TransferFailed")
    assert message.startswith(
        "1 of 2 replicas is not generating for clients: the engine in pod w-2 generates, but all probes of "
        "frontends that transfer a KV cache from a prefill worker to it fail. w-2 is Failing. "
    )
    assert (found.generating_replicas, found.prefill.generating_replicas) == (1, 2)
    serving = finding(found, "Serving")
    assert serving[:2] == ("False", "NotRouted")
    assert serving[2].startswith("1 of 2 ready replicas does not answer through every frontend (pod w-2). ")


CASES = {
    "an engine that does not generate": {"decode": "Stalled", "routes": FAILING},
    "no worker of the other role": {"prefill": None, "routes": {"w-1": "Failing"}},
    "a busy engine": {"decode": "Busy", "routes": {"w-1": "Failing", "p-1": "Answered"}},
    "no result yet": {"routes": {"w-1": "Pending", "p-1": "Pending"}},
    "a worker that is not discovered": {"routes": {"p-1": "Answered"}},
    "pods that have just become ready": {"routes": FAILING, "now": NOON + timedelta(seconds=3)},
}


@pytest.mark.parametrize("case", CASES)
def test_other_problems_are_no_failed_transfer(status_of, finding, case):
    found = status_of(**CASES[case])
    assert finding(found, "Generating")[1] != "TransferFailed"
    assert "TransferFailed" not in {worker.reason for worker in found.workers}


def test_one_frontend_that_reaches_the_worker_disproves_a_failed_transfer(status_of, finding, make_frontend):
    frontends = (make_frontend("f-1", FAILING), make_frontend("f-2", BOTH))
    found = status_of(frontends=frontends)
    assert finding(found, "Generating")[:2] == ("True", "Generating")
    assert finding(found, "Serving")[:2] == ("True", "Serving"), "the other frontend is not ready"


def test_without_prefill_failing_routes_are_no_failed_transfer(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding
):
    """A prefill worker may remain for a moment after the section was removed."""
    endpoint = make_endpoint()
    pods = [make_worker("w-1", settings=endpoint), make_prefill(settings=endpoint)]
    found = make_status(endpoint, *pods, frontends=(make_frontend("f-1", FAILING),))
    assert finding(found, "Generating")[:2] == ("True", "Generating")


def test_a_partner_of_another_revision_is_none(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding
):
    """Early in a rollout, a new worker has no partner yet."""
    endpoint = make_endpoint(prefill={})
    new = make_worker("w-1", settings=endpoint, labels={names.LABEL_REVISION: "newer"})
    found = make_status(
        endpoint, new, make_prefill(settings=endpoint), frontends=(make_frontend("f-1", FAILING),)
    )
    assert finding(found, "Generating")[:2] == ("True", "Generating")


def test_a_new_leader_keeps_a_failed_transfer_until_the_reports_arrive(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding
):
    endpoint = make_endpoint(prefill={})
    pods = [make_worker(settings=endpoint), make_prefill(settings=endpoint)]
    before = make_status(endpoint, *pods, frontends=(make_frontend("f-1", FAILING),))
    waiting = make_frontend("f-1", {}, connected=False, grace_expired=False, ready=False)
    waiting = replace(waiting, stream=replace(waiting.stream, frontend=None))
    again = make_status(replace(endpoint, status=before), *pods, frontends=(waiting,))
    assert finding(again, "Generating") == finding(before, "Generating")
    assert again.workers == before.workers


@pytest.mark.parametrize(("decode", "prefill"), [(None, "Generating"), ("Starting", "Generating")])
def test_without_a_ready_decode_worker_there_is_no_route(status_of, finding, decode, prefill):
    found = status_of(decode, prefill, routes={"p-1": "NotAccepted"}, before=status_of())
    message = "The endpoint answers no requests: no replica is ready. See the condition Available."
    assert finding(found, "Serving") == ("False", "NoRoute", message)


@pytest.mark.parametrize("prefill", [None, "Starting"])
def test_without_a_ready_prefill_worker_a_decode_worker_serves_alone(status_of, finding, prefill):
    found = status_of("Generating", prefill, routes={"w-1": "Answered"}, before=status_of())
    assert finding(found, "Serving") == (
        "True",
        "Serving",
        (
            "1 of 1 ready replica answers through 1 of 1 frontend. No prefill replica is ready, so the other "
            "replicas compute the prompts, too."
        ),
    )
    assert finding(found)[0] == "False", "the endpoint is not Ready"


def test_prefill_workers_without_an_instance_id_are_counted_by_their_role(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding
):
    endpoint = make_endpoint(prefill={})
    pods = [make(settings=endpoint, report={"instanceId": ""}) for make in (make_worker, make_prefill)]
    accepted = [{"namespace": "n", "role": "aggregated", "workers": 2}]
    frontend = make_frontend("f-1", {}, ready=True, report={"accepted": accepted})
    status, reason, message = finding(make_status(endpoint, *pods, frontends=(frontend,)), "Serving")
    assert (status, reason) == ("False", "NotRouted")
    assert message.startswith("0 of 1 ready prefill replica is accepted by frontend pod f-1")


@pytest.mark.parametrize(
    ("role", "cause"),
    [
        ("prefill", "because no replica of the same revision decodes. See the condition Available."),
        ("decode", "because the model card of the pod differs from that of the other replicas"),
    ],
)
def test_the_cause_of_a_prefill_worker_that_is_not_accepted(
    make_endpoint, make_status, make_worker, make_prefill, make_frontend, finding, role, cause
):
    endpoint = make_endpoint(prefill={})
    pods = [make_worker("w-1", settings=endpoint), make_prefill("p-1", settings=endpoint)]
    frontend = make_frontend("f-1", {"w-1": "Answered", "p-1": "NotAccepted"}, ready=True)
    namespace = frontend.stream.frontend.routes[0].namespace
    accepted = [{"namespace": namespace, "role": role, "workers": 1}]
    routes = {"w-1": "Answered", "p-1": "NotAccepted"}
    frontend = make_frontend("f-1", routes, ready=True, report={"accepted": accepted})
    found = finding(make_status(endpoint, *pods, frontends=(frontend,)), "Serving")
    assert found[:2] == ("False", "NotRouted")
    assert f"Frontend pod f-1 sends no requests to pod p-1, {cause}" in found[2]


def test_a_decode_worker_serves_alone_until_the_first_prefill_worker_is_ready(status_of, finding):
    found = status_of("Generating", "Starting", routes={"w-1": "Answered"})
    assert finding(found, "Serving")[:2] == ("True", "Serving")
    assert finding(found, "Generating")[:2] == ("Unknown", "NoWorkers")


def test_available_requires_both_roles(make_endpoint, make_status, make_worker, make_pod, finding):
    endpoint = make_endpoint(prefill={"replicas": 3})
    pending = make_pod(
        "p-1",
        ready=False,
        phase="Pending",
        conditions=[NO_GPU],
        containerStatuses=[],
        labels={names.LABEL_COMPONENT: "prefill"},
    )
    found = make_status(endpoint, make_worker(settings=endpoint), pending)
    status, reason, message = finding(found, "Available")
    assert (status, reason) == ("False", "InsufficientGPU")
    assert message.startswith("0 of 3 prefill replicas are ready (minimum: 2). Pod p-1 is waiting for")
    assert finding(found)[1] == "InsufficientGPU"


def test_ready_explains_a_missing_prefill_replica(
    make_endpoint, make_status, make_worker, make_prefill, finding
):
    endpoint = make_endpoint(prefill={"replicas": 2})
    pods = [make_worker(settings=endpoint), make_prefill(settings=endpoint)]
    pods.append(make_prefill("p-2", "Starting", settings=endpoint))
    status, reason, message = finding(make_status(endpoint, *pods))
    assert (status, reason) == ("True", "Ready")
    assert message.startswith(
        "1 of 1 replica and 1 of 2 prefill replicas are generating. 1 prefill replica is not ready. Pod p-2 "
    )


def test_a_rollout_is_complete_when_both_deployments_are(
    make_endpoint, make_status, make_worker, make_prefill, children_with, finding
):
    endpoint = make_endpoint(prefill={})
    children = children_with(endpoint, "prefill", replicas=2, updatedReplicas=1, availableReplicas=2)
    pods = [make_worker(settings=endpoint), make_prefill(settings=endpoint)]
    found = make_status(endpoint, *pods, children=children)
    status, reason, message = finding(found, "UpToDate")
    assert (status, reason) == ("False", "RollingOut")
    assert message == (
        "1 of 1 prefill replica runs the current revision, and 1 prefill replica of an older revision "
        "remains."
    )
    assert found.prefill.updated_replicas == 1


def test_a_missing_prefill_deployment_is_a_rollout(
    make_endpoint, make_plan, make_observed, make_worker, finding
):
    endpoint = make_endpoint(prefill={})
    observed = make_observed(make_plan(make_endpoint()), pods=[make_worker(settings=endpoint)])
    found = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    assert finding(found, "UpToDate")[:2] == ("False", "RollingOut")
    assert "The Deployment smollm-prefill does not exist yet." in finding(found, "UpToDate")[2]


def test_a_rejected_configuration_of_a_prefill_worker_is_reported(
    make_endpoint, make_status, make_worker, make_prefill, finding
):
    endpoint = make_endpoint(prefill={})
    problem = {
        "source": "EngineArgs",
        "reason": "InvalidEngineArguments",
        "message": "--seed is bad",
        "field": "f",
    }
    rejected = make_prefill(
        settings=endpoint,
        verdict="Starting",
        report={
            "stage__name": "Refused",
            "configuration__state": "Refused",
            "configuration__problems": [problem],
        },
    )
    found = make_status(endpoint, make_worker(settings=endpoint), rejected)
    status, reason, message = finding(found, "ConfigurationResolved")
    assert (status, reason) == ("False", "InvalidEngineArguments")
    assert message.startswith("1 of 2 workers (pod p-1) rejected the configuration from EngineArgs")


@pytest.mark.parametrize(("left", "reason"), [(False, "ScaledToZero"), (True, "Pending")])
def test_scaled_to_zero_includes_prefill_workers(
    make_endpoint, make_status, make_prefill, finding, left, reason
):
    endpoint = make_endpoint(replicas=0, prefill={})
    metadata = {} if left else {"metadata": {**TERMINATING, "labels": {names.LABEL_COMPONENT: "prefill"}}}
    metadata = metadata and {"metadata": {"name": "p-1", "uid": "u", **metadata["metadata"]}}
    pod = make_prefill(settings=endpoint, ready=False, **metadata)
    assert finding(make_status(endpoint, pod), "Available")[1] == reason


def test_the_start_up_timeout_is_that_of_the_role(
    make_endpoint, make_plan, make_observed, make_worker, make_prefill
):
    probe = {"spec": {"containers": [{"name": "main", "startupProbe": {"failureThreshold": 12}}]}}
    endpoint = make_endpoint(prefill={"podTemplate": probe})
    planned = make_plan(endpoint)
    starting = {"started": False, "verdict__state": "Starting", "stage__name": "LoadingWeights"}
    pods = [
        make("x", "Starting", settings=endpoint, report=starting, container={"started": False})
        for make in (make_worker, make_prefill)
    ]
    found = endpoint_status(endpoint, make_observed(planned, pods=pods), planned, None)
    timeouts = {worker.role: worker.message.split("within ")[1] for worker in found.workers}
    assert timeouts == {
        "Decode": "7200 s (worker.startupTimeoutSeconds).",
        "Prefill": "60 s (worker.startupTimeoutSeconds).",
    }
