"""An endpoint's components, workers and frontend: names, replicas, URLs, limits and rollout state. Pure.

``plan`` renders the components and ``status`` reports on them; neither imports the other.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from vllmendpoint_api import FrontendMode, RollingUpdate, names
from vllmendpoint_operator.observe.snapshot import FRONTEND, PREFILL, WORKER, Endpoint, Observed

__all__ = [
    "FRONTEND",
    "FRONTEND_STARTUP_SECONDS",
    "PREFILL",
    "STARTUP_PERIOD_SECONDS",
    "WORKER",
    "WORKER_GRACE_SECONDS",
    "WorkerPool",
    "frontend_name",
    "has_frontend",
    "invocations_url",
    "is_observed",
    "is_rolled_out",
    "min_ready_replicas",
    "prefill_name",
    "startup_seconds",
    "startup_timeout_seconds",
    "url",
    "worker_pools",
    "workers_name",
]

STARTUP_PERIOD_SECONDS: Final = 5
"""Period of the workers' startup probe."""
FRONTEND_STARTUP_SECONDS: Final = 120
"""The startup probe fails after this time."""
WORKER_GRACE_SECONDS: Final = 60
"""``terminationGracePeriodSeconds`` of the worker pods, unless the user's podTemplate sets another."""


def has_frontend(endpoint: Endpoint) -> bool:
    """Whether the operator runs a frontend for the endpoint."""
    return endpoint.spec.frontend.mode == FrontendMode.MANAGED


def workers_name(endpoint: Endpoint) -> str:
    """Name of the workers' Deployment, Service, ServiceAccount, RoleBinding, NetworkPolicy and budget."""
    return f"{endpoint.name}{names.WORKERS_SUFFIX}"


def prefill_name(endpoint: Endpoint) -> str:
    """Name of the prefill workers' Deployment, Service, NetworkPolicy and budget."""
    return f"{endpoint.name}{names.PREFILL_SUFFIX}"


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Workers of one Deployment."""

    component: str
    """``worker`` or ``prefill``"""
    name: str
    """Name of the Deployment, and of the Service, the NetworkPolicy and the budget of its pods."""
    replicas: int
    """Desired number of pods."""


def worker_pools(endpoint: Endpoint) -> tuple[WorkerPool, ...]:
    """The workers and, with ``spec.prefill``, the prefill workers, which do not run without the others."""
    replicas, prefill = endpoint.spec.replicas, endpoint.spec.prefill
    pools = [WorkerPool(WORKER, workers_name(endpoint), replicas)]
    if prefill is not None:
        pools.append(WorkerPool(PREFILL, prefill_name(endpoint), prefill.replicas if replicas else 0))
    return tuple(pools)


def frontend_name(endpoint: Endpoint) -> str:
    """Name of the frontend's Deployment, ServiceAccount, RoleBinding and NetworkPolicy."""
    return f"{endpoint.name}-frontend"


def url(endpoint: Endpoint) -> str:
    """Base URL of the OpenAI API: of the frontend, or of the workers if the endpoint has no frontend."""
    if has_frontend(endpoint):
        return f"http://{endpoint.name}.{endpoint.namespace}.svc:{names.FRONTEND_PORT}/v1"
    return f"http://{workers_name(endpoint)}.{endpoint.namespace}.svc:{names.SAGEMAKER_PORT}/v1"


def invocations_url(endpoint: Endpoint) -> str:
    """URL of SageMaker's ``/invocations``, which every worker serves."""
    host = f"{workers_name(endpoint)}.{endpoint.namespace}.svc"
    return f"http://{host}:{names.SAGEMAKER_PORT}/invocations"


def min_ready_replicas(replicas: int, strategy: RollingUpdate) -> int:
    """Smallest number of ready replicas that ``strategy`` allows during a rollout; at least 1.

    Rounds as the Deployment controller does (``ResolveFenceposts``): maxUnavailable down, maxSurge up. If
    both are 0 then, maxUnavailable is 1.
    """
    unavailable = math.floor(_absolute(strategy.max_unavailable, replicas))
    if not unavailable and not math.ceil(_absolute(strategy.max_surge, replicas)):
        unavailable = 1
    return max(1, replicas - unavailable)


def _absolute(amount: int | str, replicas: int) -> Fraction:
    """``amount`` is a number or a percentage of ``replicas``."""
    text = str(amount)
    return Fraction(int(text[:-1]) * replicas, 100) if text.endswith("%") else Fraction(int(text))


def startup_timeout_seconds(endpoint: Endpoint, observed: Observed, name: str) -> int:
    """The time that the kubelet gives workers to start: of the applied template, else of the spec.

    ``name``: of the workers' Deployment.

    The spec may differ: its default may be newer than the template, and a podTemplate may change the probe.
    """
    specified = endpoint.spec.worker.startup_timeout_seconds
    deployment = observed.child("Deployment", name)
    seconds = None if deployment is None else startup_seconds(deployment["spec"]["template"])
    if seconds is None or 0 <= seconds - specified < STARTUP_PERIOD_SECONDS:  # rounded up to the period
        return specified
    return seconds


def startup_seconds(template: dict[str, Any]) -> int | None:
    """Seconds until the startup probe of the main container fails; None if it has none."""
    for container in (template.get("spec") or {}).get("containers") or []:
        if container.get("name") == names.MAIN_CONTAINER and (probe := container.get("startupProbe")):
            return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))
    return None


def is_observed(deployment: dict[str, Any]) -> bool:
    """Whether the counts in ``status`` refer to the newest spec."""
    observed = int((deployment.get("status") or {}).get("observedGeneration", -1))
    return observed >= int(deployment["metadata"].get("generation", 0))


def is_rolled_out(deployment: dict[str, Any], *, available: bool = True) -> bool:
    """Whether all pods have the newest template and, with ``available``, all of them are available.

    Source: ``DeploymentStatusViewer.Status`` of ``k8s.io/kubectl/pkg/polymorphichelpers``, which
    ``kubectl rollout status`` uses.
    """
    status = deployment.get("status") or {}
    updated = int(status.get("updatedReplicas", 0))
    return (
        is_observed(deployment)
        and updated >= int(deployment["spec"].get("replicas", 1))
        and int(status.get("replicas", 0)) <= updated
        and (not available or int(status.get("availableReplicas", 0)) >= updated)
    )
