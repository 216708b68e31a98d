"""The desired state of one endpoint: what ``plan`` returns, ``apply`` writes and ``status`` reports. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vllmendpoint_api import RevisionStatus, WorkerSettings

__all__ = ["Plan", "Scaling", "WithheldHealthCheck"]


class WithheldHealthCheck(msgspec.Struct, frozen=True, rename="camel"):
    """A health check of the spec that the operator does not publish, because a worker rejects it."""

    request: str
    """Digest of the health check and of the revision whose pods rejected it."""
    pod: str
    problem: str
    """The worker's sentence, after the source of the setting."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All child resources of an endpoint. Objects are complete: they have a namespace and an owner."""

    children: tuple[dict[str, Any], ...]
    """In the order in which to apply them."""
    verify: tuple[dict[str, Any], ...]
    """Objects to verify by a dry run before the first write."""
    prune: tuple[dict[str, Any], ...]
    """Live objects of the endpoint to delete."""
    refresh: Mapping[str, str]
    """Pod name -> settings hash to annotate it with, so that the kubelet updates the mounted settings now."""
    settings: WorkerSettings
    """The settings that the workers mount."""
    withheld: WithheldHealthCheck | None
    """Set while the workers keep the last good health check instead of the one in the spec."""
    revision: RevisionStatus


@dataclass(frozen=True, slots=True)
class Scaling:
    """Replica counts alone. They apply to existing Deployments even if the rest of the spec is rejected."""

    replicas: Mapping[str, int]
    """Name of an existing Deployment -> replicas."""
    children: tuple[dict[str, Any], ...]
    """Complete objects that depend on the number of replicas."""
    prune: tuple[dict[str, Any], ...]
    """Live objects of the endpoint to delete."""
