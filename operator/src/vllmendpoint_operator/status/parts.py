"""The two Deployments of an endpoint, and which of their pods are of the newest template."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllmendpoint_operator.components import (
    FRONTEND,
    FRONTEND_STARTUP_SECONDS,
    WORKER,
    frontend_name,
    has_frontend,
    is_observed,
    min_ready_replicas,
    workers_name,
)
from vllmendpoint_operator.observe.snapshot import (
    REVISION_ANNOTATION,
    Endpoint,
    Object,
    Observed,
    Pod,
    replica_failure,
)

__all__ = ["Part", "frontend", "parts", "workers"]


@dataclass(frozen=True, slots=True)
class Part:
    """The workers, or the frontend."""

    name: str
    """The Deployment's."""
    component: str
    """As the field of the spec is called: ``worker`` or ``frontend``."""
    what: str
    replicas: int
    """As the spec has it."""
    needed: int
    """Ready ones that suffice."""
    budget: int
    """Seconds that a pod may take to start."""
    pods: tuple[Pod, ...]
    deployment: Object | None
    newest: str | None
    """Label of the newest template's pods; None where the Deployment controller has yet to say."""
    refused: str = ""
    """Why pods of the newest template cannot be created, as their ReplicaSet has it from the API server."""

    @property
    def ready(self) -> int:
        return sum(pod.ready for pod in self.pods)

    @property
    def asked_for(self) -> int:
        """Replicas that the Deployment was last given."""
        return 0 if self.deployment is None else int(self.deployment["spec"].get("replicas", 1))

    @property
    def refusal(self) -> str:
        """Why pods cannot be created; empty where they can.

        A Deployment keeps the message of the first refusal for as long as there is one (the controller's
        ``SetDeploymentCondition``): after a change of the spec that of the newest ReplicaSet is right.
        """
        said = replica_failure(self.deployment or {})
        return (self.refused or said) if said else ""

    @property
    def containers(self) -> list[str]:
        """Names of those of its pod template, init containers aside."""
        template = ((self.deployment or {}).get("spec") or {}).get("template") or {}
        return [str(one.get("name", "")) for one in (template.get("spec") or {}).get("containers") or []]

    @property
    def seen(self) -> bool:
        """The Deployment controller has looked at the newest spec."""
        return self.deployment is not None and is_observed(self.deployment)

    @property
    def current(self) -> list[Pod] | None:
        """Pods of the newest template that are neither over nor on their way out; None where that is unknown.

        What is wrong with older ones says nothing of what the spec asks for now.
        """
        if self.deployment is None or not self.seen or self.newest is None:
            return None
        found = [
            pod
            for pod in self.pods
            if pod.template_hash == self.newest and not pod.finished and not pod.terminating
        ]
        # A template that changes with the replicas is taken in a step later than they are.
        updated = (self.deployment.get("status") or {}).get("updatedReplicas", 0)
        return None if found and not updated else found


def workers(endpoint: Endpoint, observed: Observed) -> Part:
    name = workers_name(endpoint)
    return Part(
        name,
        WORKER,
        "replica",
        endpoint.spec.replicas,
        min_ready_replicas(endpoint.spec.replicas, endpoint.spec.strategy.rolling_update),
        endpoint.spec.worker.startup_timeout_seconds,
        observed.workers,
        *_made(observed, name),
    )


def frontend(endpoint: Endpoint, observed: Observed) -> Part | None:
    """None where the spec has none."""
    if not has_frontend(endpoint):
        return None
    name = frontend_name(endpoint)
    replicas = endpoint.spec.frontend.replicas
    return Part(
        name,
        FRONTEND,
        "frontend pod",
        replicas,
        1,
        FRONTEND_STARTUP_SECONDS,
        observed.frontends,
        *_made(observed, name),
    )


def parts(endpoint: Endpoint, observed: Observed) -> Iterator[Part]:
    yield workers(endpoint, observed)
    if (found := frontend(endpoint, observed)) is not None:
        yield found


def _made(observed: Observed, name: str) -> tuple[Object | None, str | None, str]:
    deployment = observed.child("Deployment", name)
    if deployment is None:
        return None, None, ""
    revision = str((deployment["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))
    last = max(
        (number for owner, number in observed.template_hashes if owner == name), key=_number, default=""
    )
    # A template that was there before is numbered anew, and the Deployment in a step after that.
    if revision != last:
        return deployment, None, ""
    key = name, revision
    return deployment, observed.template_hashes.get(key), observed.replica_failures.get(key, "")


def _number(revision: str) -> int:
    return int(revision) if revision.isdecimal() else 0
