"""The containers of a pod, of every kind, in the order in which they start."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllmendpoint_api import names
from vllmendpoint_operator.observe.snapshot import Pod

__all__ = ["Container", "Role", "containers", "debuggers"]


class Role(StrEnum):
    """As it is named in a message."""

    INIT = "init container"
    SIDECAR = "sidecar container"
    """An init container with ``restartPolicy: Always``: the main container waits until it has started."""
    MAIN = "main container"
    OTHER = "container"
    """Beside the main one: of a podTemplate, or of a webhook."""
    EPHEMERAL = "ephemeral container"
    """Of ``kubectl debug``: the pod is ready without it."""


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    role: Role
    status: dict[str, Any]
    """As the kubelet reports it."""

    @property
    def is_main(self) -> bool:
        return self.role is Role.MAIN

    @property
    def title(self) -> str:
        return f"{self.role} {self.name}"

    def field(self, pod: Pod) -> str:
        """Where its image and the rest of it are set."""
        if self.is_main:
            # The frontend runs the workers' image.
            return "worker.image"
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
        """An init container that has done its work. Any other container that ends is started again."""
        return self.role is Role.INIT and bool(self.terminated) and not self.terminated.get("exitCode", 0)

    @property
    def started(self) -> bool:
        """It does not keep the containers after it from starting."""
        if self.role is Role.INIT:
            return self.completed
        return "running" in self.state and self.status.get("started") is not False


def containers(pod: Pod) -> Iterator[Container]:
    """Those without which the pod is not ready."""
    always = {
        one.get("name")
        for one in (pod.obj.get("spec") or {}).get("initContainers") or []
        if one.get("restartPolicy") == "Always"
    }
    for status in pod.status.get("initContainerStatuses") or []:
        name = str(status.get("name", ""))
        yield Container(name, Role.SIDECAR if name in always else Role.INIT, status)
    for status in pod.status.get("containerStatuses") or []:
        name = str(status.get("name", ""))
        yield Container(name, Role.MAIN if name == names.MAIN_CONTAINER else Role.OTHER, status)


def debuggers(pod: Pod) -> Iterator[Container]:
    """Ephemeral containers: what is wrong with one does not concern the pod's readiness."""
    for status in pod.status.get("ephemeralContainerStatuses") or []:
        yield Container(str(status.get("name", "")), Role.EPHEMERAL, status)
