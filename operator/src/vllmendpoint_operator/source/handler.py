"""What a source needs from the controller."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vllmendpoint_operator.kube.client import Object
from vllmendpoint_operator.kube.object_meta import Key

__all__ = ["EndpointHandler", "KnownVersion", "Namespaces"]


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """The version of an object that the handler has."""

    uid: str
    resource_version: int


class EndpointHandler(Protocol):
    """Receives the events of a source, all on the event loop that runs the source."""

    def on_upsert(self, obj: Object) -> None:
        """Store an endpoint. A version that is not newer than the stored one must have no effect."""

    def on_delete(self, key: Key, uid: str) -> None:
        """Remove the endpoint, unless another one with the same name has replaced it."""

    def known_versions(self, namespace: str | None) -> Mapping[Key, KnownVersion]:
        """The version of each endpoint in the namespace; None: in all namespaces."""


class Namespaces(Protocol):
    """The watched namespaces and which of them the API server allows the operator to read.

    ``None`` as the name of a namespace means all namespaces of the cluster.
    """

    @property
    def served(self) -> tuple[str | None, ...]:
        """The namespaces whose endpoints are reconciled."""

    async def wait_until_ready(self) -> None:
        """Wait until at least one namespace is served and every other one is served or has failed."""

    async def wait_until_accessible(self) -> tuple[str | None, ...]:
        """Wait until at least one namespace may be watched; return all that may be."""

    async def wait_for_other_than(self, names: tuple[str | None, ...]) -> None:
        """Wait until the namespaces that may be watched are no longer ``names``."""
