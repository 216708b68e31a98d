"""The observed state of an endpoint's Deployments, and which of their pods have the newest template."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vllmendpoint_operator.components import (
    FRONTEND,
    FRONTEND_STARTUP_SECONDS,
    PREFILL,
    WORKER,
    WorkerPool,
    frontend_name,
    has_frontend,
    is_observed,
    min_ready_replicas,
    startup_timeout_seconds,
    worker_pools,
)
from vllmendpoint_operator.observe.snapshot import (
    REVISION_ANNOTATION,
    Endpoint,
    Object,
    Observed,
    Pod,
    replica_failure,
)

__all__ = ["NOUNS", "Component", "components", "frontend_component", "worker_components"]

NOUNS: Final = {WORKER: "replica", PREFILL: "prefill replica", FRONTEND: "frontend pod"}
"""Component -> what a message calls one of its pods."""


@dataclass(frozen=True, slots=True)
class _DeploymentState:
    deployment: Object | None
    """None if it does not exist."""
    newest_template_hash: str | None = None
    """Label of the newest template's pods; None until the Deployment controller has set it."""
    newest_replica_failure: str = ""
    """Why the newest ReplicaSet cannot create pods: the API server's message."""


@dataclass(frozen=True, slots=True)
class Component:
    """The workers, the prefill workers or the frontend."""

    kind: str
    """``worker``, ``prefill`` or ``frontend``, the name of the section in the spec."""
    name: str
    """Name of the Deployment."""
    replicas: int
    """Desired, by the spec of the endpoint."""
    min_available: int
    """Ready replicas that suffice for ``Available``."""
    startup_timeout_seconds: int
    pods: tuple[Pod, ...]
    state: _DeploymentState

    @property
    def noun(self) -> str:
        """What a message calls one of its pods, in the singular."""
        return NOUNS[self.kind]

    @property
    def deployment(self) -> Object | None:
        return self.state.deployment

    @property
    def ready_replicas(self) -> int:
        return sum(pod.ready for pod in self.pods)

    @property
    def desired_replicas(self) -> int:
        """In the spec of the Deployment; 0 if it does not exist."""
        return 0 if self.deployment is None else int(self.deployment["spec"].get("replicas", 1))

    @property
    def replica_failure(self) -> str:
        """Why pods cannot be created; empty if they can.

        The Deployment controller (``SetDeploymentCondition``) keeps the first message while the condition
        stays True. After a change of the spec, the message of the newest ReplicaSet is the right one.
        """
        message = replica_failure(self.deployment or {})
        return (self.state.newest_replica_failure or message) if message else ""

    @property
    def container_names(self) -> list[str]:
        """Of the Deployment's pod template, without init containers."""
        template = ((self.deployment or {}).get("spec") or {}).get("template") or {}
        containers = (template.get("spec") or {}).get("containers") or []
        return [str(container.get("name", "")) for container in containers]

    @property
    def generation_observed(self) -> bool:
        """Whether the Deployment controller has processed the newest spec."""
        return self.deployment is not None and is_observed(self.deployment)

    @property
    def current_pods(self) -> list[Pod] | None:
        """Pods of the newest template that are neither finished nor terminating; None if that is unknown.

        Problems of older pods do not concern the current spec.
        """
        newest = self.state.newest_template_hash
        if self.deployment is None or not self.generation_observed or newest is None:
            return None
        found = [
            pod
            for pod in self.pods
            if pod.template_hash == newest and not pod.finished and not pod.terminating
        ]
        # If the template and the replicas change together, the controller updates the replicas first.
        updated = (self.deployment.get("status") or {}).get("updatedReplicas", 0)
        return None if found and not updated else found


def worker_components(endpoint: Endpoint, observed: Observed) -> tuple[Component, ...]:
    """The workers and, with ``spec.prefill``, the prefill workers."""
    return tuple(_worker_component(endpoint, observed, pool) for pool in worker_pools(endpoint))


def _worker_component(endpoint: Endpoint, observed: Observed, pool: WorkerPool) -> Component:
    return Component(
        kind=pool.component,
        name=pool.name,
        replicas=pool.replicas,
        min_available=min_ready_replicas(pool.replicas, endpoint.spec.strategy.rolling_update),
        startup_timeout_seconds=startup_timeout_seconds(endpoint, observed, pool.name),
        pods=observed.prefill if pool.component == PREFILL else observed.workers,
        state=_deployment_state(observed, pool.name),
    )


def frontend_component(endpoint: Endpoint, observed: Observed) -> Component | None:
    """None if the endpoint has no frontend."""
    if not has_frontend(endpoint):
        return None
    name = frontend_name(endpoint)
    return Component(
        kind=FRONTEND,
        name=name,
        replicas=endpoint.spec.frontend.replicas,
        min_available=1,
        startup_timeout_seconds=FRONTEND_STARTUP_SECONDS,
        pods=observed.frontends,
        state=_deployment_state(observed, name),
    )


def components(endpoint: Endpoint, observed: Observed) -> Iterator[Component]:
    yield from worker_components(endpoint, observed)
    if (frontend := frontend_component(endpoint, observed)) is not None:
        yield frontend


def _deployment_state(observed: Observed, name: str) -> _DeploymentState:
    deployment = observed.child("Deployment", name)
    if deployment is None:
        return _DeploymentState(None)
    revision = str((deployment["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))
    revisions = [number for owner, number in observed.template_hashes if owner == name]
    newest = max(revisions, key=_number, default="")
    # On a return to an earlier template, the controller first renumbers the ReplicaSet, then the Deployment.
    if revision != newest:
        return _DeploymentState(deployment)
    key = name, revision
    return _DeploymentState(
        deployment, observed.template_hashes.get(key), observed.replica_failures.get(key, "")
    )


def _number(revision: str) -> int:
    return int(revision) if revision.isdecimal() else 0
