"""The containers of a pod, of every kind, in the order in which they start, and their resources."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllmendpoint_api import names
from vllmendpoint_operator.observe.snapshot import PREFILL, WORKER, Pod

__all__ = ["Container", "Role", "containers", "ephemeral_containers", "resource_amount"]


class Role(StrEnum):
    """The value is the name of the role in messages."""

    INIT = "init container"
    SIDECAR = "sidecar container"
    """An init container with ``restartPolicy: Always``. The main container starts after it."""
    MAIN = "main container"
    OTHER = "container"
    """Another regular container, from a podTemplate or a webhook."""
    EPHEMERAL = "ephemeral container"
    """From ``kubectl debug``. It does not affect the pod's readiness."""


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    role: Role
    status: dict[str, Any]
    """The kubelet's ContainerStatus."""

    @property
    def is_main(self) -> bool:
        return self.role is Role.MAIN

    @property
    def title(self) -> str:
        return f"{self.role} {self.name}"

    def field(self, pod: Pod) -> str:
        """The field that sets its image."""
        if self.is_main:
            # Workers of both roles have the same image.
            return f"{WORKER if pod.component == PREFILL else pod.component}.image"
        if self.role is Role.EPHEMERAL:
            return "the options of kubectl debug"
        return f"{pod.component}.podTemplate"

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status.get("state") or {}
        return found

    @property
    def waiting(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state.get("waiting") or {}
        return found

    @property
    def terminated(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state.get("terminated") or {}
        return found

    @property
    def completed(self) -> bool:
        """Whether an init container has succeeded. Kubernetes restarts any other container that ends."""
        return self.role is Role.INIT and bool(self.terminated) and not self.terminated.get("exitCode", 0)

    @property
    def started(self) -> bool:
        """Whether the containers after this one can start."""
        if self.role is Role.INIT:
            return self.completed
        return "running" in self.state and self.status.get("started") is not False


def containers(pod: Pod) -> Iterator[Container]:
    """The containers that the pod's readiness depends on."""
    sidecars = {
        container.get("name")
        for container in (pod.obj.get("spec") or {}).get("initContainers") or []
        if container.get("restartPolicy") == "Always"
    }
    for status in pod.status.get("initContainerStatuses") or []:
        name = str(status.get("name", ""))
        yield Container(name, Role.SIDECAR if name in sidecars else Role.INIT, status)
    for status in pod.status.get("containerStatuses") or []:
        name = str(status.get("name", ""))
        yield Container(name, Role.MAIN if name == names.MAIN_CONTAINER else Role.OTHER, status)


def ephemeral_containers(pod: Pod) -> Iterator[Container]:
    for status in pod.status.get("ephemeralContainerStatuses") or []:
        yield Container(str(status.get("name", "")), Role.EPHEMERAL, status)


def resource_amount(pod: Pod, resource: str, *kinds: str, container: str | None = None) -> str | None:
    """Amount of a resource under the first of ``kinds`` ("requests", "limits") that has it.

    Of the named container, or else of the first container with such an entry.
    """
    spec = pod.obj.get("spec") or {}
    found: list[dict[str, Any]] = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    for each in found:
        if container not in (None, each.get("name")):
            continue
        for kind in kinds:
            amounts = (each.get("resources") or {}).get(kind) or {}
            if resource in amounts:
                return str(amounts[resource])
    return None
