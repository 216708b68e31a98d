"""Builders of the snapshots from which plan, diff and status are computed."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import pytest

from vllmendpoint_api import (
    Condition,
    ConditionEntry,
    FrontendReport,
    VLLMEndpointSpec,
    VLLMEndpointStatus,
    WorkerReport,
    names,
)
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.observe.snapshot import (
    PREFILL,
    REVISION_ANNOTATION,
    ConfigMapContent,
    Endpoint,
    Observed,
    Pod,
)
from vllmendpoint_operator.plan.configuration import worker_settings
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.planner import plan
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.status import endpoint_status

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
Object = dict[str, Any]


@pytest.fixture
def noon() -> datetime:
    return NOON


@pytest.fixture
def options() -> Options:
    return Options(
        worker_image="registry.example/worker:1",
        frontend_image="registry.example/frontend:1",
        operator_labels={"app": "operator"},
    )


@pytest.fixture
def make_endpoint() -> Callable[..., Endpoint]:
    """``make_endpoint(replicas=3)``: keywords are fields of the spec with their JSON names."""

    def make(
        *,
        name: str = "smollm",
        namespace: str = "team-a",
        generation: int = 1,
        rollout: str = "",
        before: VLLMEndpointStatus | None = None,
        **spec: Any,
    ) -> Endpoint:
        full = {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}, **spec}
        parsed = VLLMEndpointSpec.model_validate(full)
        return Endpoint(namespace, name, "uid-1", generation, parsed, before, rollout)

    return make


@pytest.fixture
def make_plan(options: Options) -> Callable[..., Plan]:
    def make(endpoint: Endpoint, observed: Observed | None = None, **changed: Any) -> Plan:
        chosen = Options(**{**vars_of(options), **changed})
        return plan(endpoint, observed or Observed(now=NOON), chosen)

    return make


def vars_of(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


@pytest.fixture
def child() -> Callable[[Plan, str, str], Object]:
    """One object of a plan, by kind and name."""

    def find(planned: Plan, kind: str, name: str) -> Object:
        found = [c for c in planned.children if (c["kind"], c["metadata"]["name"]) == (kind, name)]
        assert found, f"no {kind} {name} in {[(c['kind'], c['metadata']['name']) for c in planned.children]}"
        return found[0]

    return find


@pytest.fixture
def make_observed() -> Callable[..., Observed]:
    """The snapshot after a plan was applied and its rollouts are complete."""

    def make(planned: Plan, *, pods: Iterable[Pod] = (), **more: Any) -> Observed:
        children, hashes = {}, {}
        for child in planned.children:
            live = {**child, "metadata": {**child["metadata"], "generation": 1}}
            if child["kind"] == "Deployment":
                count = child["spec"]["replicas"]
                live["status"] = {
                    "observedGeneration": 1,
                    "replicas": count,
                    "updatedReplicas": count,
                    "availableReplicas": count,
                }
                live["metadata"]["annotations"] = {REVISION_ANNOTATION: "1"}
                hashes[child["metadata"]["name"], "1"] = "new"
            children[child["kind"], child["metadata"]["name"]] = live
        pods = tuple(pods)
        prefill = tuple(pod for pod in pods if pod.component == PREFILL)
        frontend = frontend_pod("frontend-1", {pod.name: "Answered" for pod in pods})
        return Observed(
            **{
                "now": NOON,
                "children": children,
                "workers": tuple(pod for pod in pods if pod not in prefill),
                "prefill": prefill,
                "frontends": (frontend,),
                "template_hashes": hashes,
                **more,
            }
        )

    return make


@pytest.fixture
def config_maps() -> Callable[..., dict[str, ConfigMapContent]]:
    return lambda **data: {name: ConfigMapContent(content) for name, content in data.items()}


def report_of(verdict: str = "Generating", *, settings_hash: str = "", **changed: Any) -> WorkerReport:
    """A report of a worker. A keyword ``a__b`` sets the field ``b`` of the field ``a``."""
    since = (NOON - timedelta(minutes=10)).isoformat()
    wire: dict[str, Any] = {
        "version": 1,
        "workerVersion": "0.1.0",
        "podUid": "uid-worker",
        "time": NOON.isoformat(),
        "started": verdict != "Starting",
        "ready": verdict in ("Generating", "Busy"),
        "stage": {"name": "Serving", "since": since},
        "configuration": {"state": "Resolved", "settingsHash": settings_hash},
        "healthCheck": {
            "source": "ModelDefault",
            "level": "Minimal",
            "payload": {"prompt": "1"},
            "payloadDigest": "d1",
            "periodSeconds": 30,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
            "successThreshold": 1,
            "restartAfterSeconds": 600,
        },
        "verdict": {"state": verdict, "since": since},
        "lastProbe": {
            "time": NOON.isoformat(),
            "latencyMilliseconds": 12.4,
            "tokens": 1,
            "outcome": "Complete",
        },
    }
    for path, value in changed.items():
        *parents, last = path.split("__")
        at = wire
        for parent in parents:
            at = at[parent]
        at[last] = value
    return WorkerReport.model_validate(wire)


def ready_pod(name: str, stream: StreamState | None = None, **changed: Any) -> Pod:
    """A pod that runs and is ready. Keywords replace parts of it."""
    container = {
        "name": names.MAIN_CONTAINER,
        "image": "registry.example/worker:1",
        "restartCount": 0,
        "started": True,
        "state": {"running": {"startedAt": "2026-01-01T11:50:00Z"}},
        **changed.pop("container", {}),
    }
    ready = changed.pop("ready", True)
    labels = {"pod-template-hash": "new", names.LABEL_REVISION: "new", names.LABEL_DRAINS: "true"}
    metadata = {
        "name": name,
        "uid": f"uid-{name}",
        "namespace": "team-a",
        "labels": labels | changed.pop("labels", {}),
        **changed.pop("metadata", {}),
    }
    obj = {
        "metadata": metadata,
        "spec": {"nodeName": "node-1", **changed.pop("spec", {})},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [container],
            **changed,
        },
    }
    return Pod(name, metadata["uid"], obj, stream or StreamState())


def instance_id(name: str) -> str:
    """Dynamo's instance ID of the worker pod ``name``."""
    return str(crc32(name.encode()))


def frontend_report(routes: dict[str, str], /, **changed: Any) -> FrontendReport:
    """``routes``: name of a worker pod -> state of the route to it. Keywords replace fields of the report."""
    since = (NOON - timedelta(minutes=10)).isoformat()
    answers = "Answered" in routes.values()
    wire: dict[str, Any] = {
        "workerVersion": "0.1.0",
        "podUid": "uid-frontend",
        "time": NOON.isoformat(),
        "ready": answers,
        "stage": {"name": "Serving", "since": since},
        "answering": True,
        "message": "" if answers else "No worker answers.",
        "models": ["smollm"],
        "accepted": [{"namespace": "n", "role": "aggregated", "workers": len(routes)}],
        "routes": [
            {
                "instanceId": instance_id(name),
                "namespace": "n",
                "state": state,
                "message": "" if state == "Answered" else f"{name} is {state}.",
                "since": since,
            }
            for name, state in routes.items()
        ],
        **changed,
    }
    return FrontendReport.model_validate(wire)


def frontend_pod(
    name: str = "f-1",
    routes: dict[str, str] | None = None,
    *,
    ready: bool | None = None,
    report: dict[str, Any] | None = None,
    connected: bool = True,
    grace_expired: bool = True,
    error: str = "",
    silent: bool = False,
    **pod: Any,
) -> Pod:
    """A frontend whose report was received; ready if it has a route."""
    sent = frontend_report(routes or {}, **(report or {}))
    stream = StreamState(None, connected, grace_expired, error, sent, silent)
    ports = [{"name": "report", "containerPort": 9091}]
    return ready_pod(
        name,
        stream,
        ready=sent.ready if ready is None else ready,
        spec={"containers": [{"name": names.MAIN_CONTAINER, "ports": ports}]} | pod.pop("spec", {}),
        **pod,
    )


@pytest.fixture
def make_frontend() -> Callable[..., Pod]:
    """``make_frontend("f-1", {"w-1": "Answered"})``: the frontend ``f-1`` with a route to the pod ``w-1``."""
    return frontend_pod


@pytest.fixture
def make_pod() -> Callable[..., Pod]:
    return ready_pod


@pytest.fixture
def make_worker() -> Callable[..., Pod]:
    """A worker whose report was received: ``make_worker("w-1", "Stalled", settings=endpoint)``."""

    def make(
        name: str = "w-1",
        verdict: str = "Generating",
        *,
        ready: bool | None = None,
        settings: Endpoint | None = None,
        report: dict[str, Any] | None = None,
        connected: bool = True,
        grace_expired: bool = True,
        error: str = "",
        **pod: Any,
    ) -> Pod:
        hash_ = worker_settings(settings.spec, None).hash if settings else ""
        sent = report_of(verdict, settings_hash=hash_, **{"instanceId": instance_id(name), **(report or {})})
        good = verdict in ("Generating", "Busy", "Disabled") if ready is None else ready
        return ready_pod(name, StreamState(sent, connected, grace_expired, error), ready=good, **pod)

    return make


@pytest.fixture
def make_prefill(make_worker: Callable[..., Pod]) -> Callable[..., Pod]:
    """As ``make_worker``, for a prefill worker."""

    def make(name: str = "p-1", verdict: str = "Generating", **more: Any) -> Pod:
        labels = {names.LABEL_COMPONENT: PREFILL, **more.pop("labels", {})}
        return make_worker(name, verdict, labels=labels, **more)

    return make


@pytest.fixture
def make_status(make_plan: Callable[..., Plan], make_observed: Callable[..., Observed]) -> Callable[..., Any]:
    """The status of an endpoint with these worker pods, after its plan was applied."""

    def make(endpoint: Endpoint, *pods: Pod, problem: Any = None, **more: Any) -> VLLMEndpointStatus:
        planned = make_plan(endpoint)
        observed = make_observed(planned, pods=pods, **more)
        return endpoint_status(endpoint, observed, None if problem else planned, problem)

    return make


@pytest.fixture
def condition() -> Callable[[VLLMEndpointStatus, str], ConditionEntry]:
    def find(of: VLLMEndpointStatus, kind: str) -> ConditionEntry:
        return next(entry for entry in of.conditions if entry.type == Condition(kind).value)

    return find
