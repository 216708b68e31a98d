"""Pinned pod templates: an upgrade of the operator changes no pod. Pure.

A ControllerRevision stores the rendered templates with a digest of their inputs. While the inputs do not
change, the operator applies the stored templates, whatever its version would render.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from vllmendpoint_api import RevisionStatus, names
from vllmendpoint_operator.components import (
    FRONTEND,
    WORKER,
    has_frontend,
    is_rolled_out,
    startup_seconds,
    worker_pools,
    workers_name,
)
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .configuration import digest
from .options import Options
from .pods.dynamo import is_legacy_template, is_legacy_worker, with_namespace_suffix
from .pods.frontend import pod_template as frontend_template
from .pods.frontend import with_prefix
from .pods.workers import pod_template as worker_template

__all__ = ["HISTORY_LIMIT", "Revision", "current_revision", "inputs_hash", "revisions"]

HISTORY_LIMIT: Final = 3
"""Number of ControllerRevisions to keep, with the current one."""
_INPUTS_HASH: Final = f"{names.GROUP}/inputs-hash"
"""Annotation of a ControllerRevision."""
_HOT_FIELDS: Final = ("replicas", "healthCheck", "handlers", "strategy", "paused", "restartedAt")
"""Fields of the spec that do not change the pod templates."""
_FORMER_STARTUP_SECONDS: Final = 1800
"""Default of ``worker.startupTimeoutSeconds`` in earlier releases."""


@dataclass(frozen=True, slots=True)
class _RestartRequests:
    """The newest restart requests. As annotations of the worker's template they restart the workers even if
    nothing else changed."""

    rollout: str = ""
    """Value of the rollout annotation; empty if there is none."""
    restarted_at: str = ""
    """``spec.restartedAt`` in UTC; empty if there is none."""

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint) -> "_RestartRequests":
        time = endpoint.spec.restarted_at
        if time is None:
            return cls(endpoint.rollout)
        # Another notation of the same time must request nothing, so convert it to UTC. The first and the last
        # representable day may have no UTC time.
        with contextlib.suppress(OverflowError):
            time = time.astimezone(UTC)
        return cls(endpoint.rollout, time.isoformat())

    @classmethod
    def from_revision(cls, revision: dict[str, Any]) -> "_RestartRequests":
        found = revision["data"][WORKER].get("metadata", {}).get("annotations") or {}
        return cls(found.get(names.ANNOTATION_ROLLOUT, ""), found.get(names.ANNOTATION_RESTARTED_AT, ""))

    def or_else(self, last: "_RestartRequests") -> "_RestartRequests":
        """Missing values from ``last``: `kubectl replace` may remove them, which requests nothing."""
        return _RestartRequests(self.rollout or last.rollout, self.restarted_at or last.restarted_at)

    def annotate(self, template: dict[str, Any]) -> dict[str, Any]:
        requests = {
            names.ANNOTATION_ROLLOUT: self.rollout,
            names.ANNOTATION_RESTARTED_AT: self.restarted_at,
        }
        requests = {name: value for name, value in requests.items() if value}
        if not requests:
            return template
        metadata = template["metadata"]
        annotations = {**metadata.get("annotations", {}), **requests}
        return {**template, "metadata": {**metadata, "annotations": annotations}}


@dataclass(frozen=True, slots=True)
class Revision:
    """A ControllerRevision of the endpoint."""

    name: str
    number: int
    inputs: str
    """Digest of the inputs; see :func:`inputs_hash`."""
    data: dict[str, Any]
    """Component -> PodTemplateSpec: ``worker``, and ``prefill`` and ``frontend`` if the spec has them."""
    upgrade_available: bool
    """This version of the operator would render other templates."""

    def status(self) -> RevisionStatus:
        containers = self.data[WORKER]["spec"]["containers"]
        image = next(found["image"] for found in containers if found["name"] == names.MAIN_CONTAINER)
        return RevisionStatus(name=self.name, image=image, upgrade_available=self.upgrade_available)

    def object(self, endpoint: Endpoint) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": self.name,
                "labels": endpoint.labels("revision"),
                "annotations": {_INPUTS_HASH: self.inputs},
            },
            "revision": self.number,
            "data": self.data,
        }


def revisions(observed: Observed) -> list[dict[str, Any]]:
    """The endpoint's ControllerRevisions, newest first."""
    found = [obj for (kind, _), obj in observed.children.items() if kind == "ControllerRevision"]
    return sorted(found, key=lambda obj: (-int(obj.get("revision", 0)), obj["metadata"]["name"]))


def current_revision(
    endpoint: Endpoint, observed: Observed, options: Options, config: str | None
) -> Revision:
    """The newest existing revision if its inputs are the current ones, else a new revision.

    ``config``: name of the ConfigMap with the engine's config file, which ends in a digest of its content.
    """
    existing = revisions(observed)
    newest = existing[0] if existing else None
    last = _RestartRequests() if newest is None else _RestartRequests.from_revision(newest)
    requests = _RestartRequests.from_endpoint(endpoint).or_else(last)
    rendered = _render(endpoint, options, config, requests)
    legacy = newest is not None and _legacy_workers_remain(endpoint, observed, newest["data"])
    hashes = {
        # With and without the last value: users may also set this annotation in podTemplate.
        rollout: inputs_hash(endpoint, config, rollout)
        for rollout in {requests.rollout, endpoint.rollout}
    }
    if newest is not None and requests.restarted_at == last.restarted_at:
        inputs = str((newest["metadata"].get("annotations") or {}).get(_INPUTS_HASH, ""))
        if inputs in hashes.values() and not _shortens_startup(endpoint, newest["data"], rendered):
            return _existing_revision(endpoint, newest, inputs, rendered, legacy)
    inputs = hashes[requests.rollout]
    number = 1 if newest is None else int(newest["revision"]) + 1
    data = _with_prefix(endpoint, rendered, include_legacy=legacy)
    return Revision(_name(endpoint, inputs, data), number, inputs, data, upgrade_available=False)


def _render(
    endpoint: Endpoint, options: Options, config: str | None, requests: _RestartRequests
) -> dict[str, Any]:
    templates = {
        pool.component: requests.annotate(worker_template(endpoint, options, config, pool.component))
        for pool in worker_pools(endpoint)
    }
    data: dict[str, Any] = with_namespace_suffix(templates)
    if has_frontend(endpoint):
        data[FRONTEND] = frontend_template(endpoint, options)
    return data


def _existing_revision(
    endpoint: Endpoint, newest: dict[str, Any], inputs: str, rendered: dict[str, Any], legacy: bool
) -> Revision:
    """``newest``, or its successor whose frontend no longer accepts legacy workers, once there are none."""
    data = newest["data"] if legacy else _with_prefix(endpoint, newest["data"], include_legacy=False)
    is_same = data == newest["data"]
    return Revision(
        name=newest["metadata"]["name"] if is_same else _name(endpoint, inputs, data),
        number=int(newest["revision"]) + (not is_same),
        inputs=inputs,
        data=data,
        upgrade_available=_with_prefix(endpoint, data, include_legacy=False) != rendered,
    )


def _name(endpoint: Endpoint, inputs: str, data: dict[str, Any]) -> str:
    """Includes the inputs: ``data`` of a ControllerRevision is immutable, but a rollout request may change
    the inputs and render equal templates."""
    return f"{endpoint.name}-{digest([inputs, data])}"


def _legacy_workers_remain(endpoint: Endpoint, observed: Observed, newest: dict[str, Any]) -> bool:
    """Whether legacy workers run, or may still be created. ``newest``: templates of the newest revision."""
    deployment = observed.child("Deployment", workers_name(endpoint))
    if is_legacy_template(newest[WORKER]):
        return True
    if any(is_legacy_worker(pod) and not pod.finished for pod in observed.workers):
        return True
    # An older ReplicaSet may still replace a pod that was evicted.
    accepts_legacy = _with_prefix(endpoint, newest, include_legacy=False) != newest
    return deployment is not None and not is_rolled_out(deployment) and accepts_legacy


def _with_prefix(endpoint: Endpoint, data: dict[str, Any], *, include_legacy: bool) -> dict[str, Any]:
    """``data`` with a frontend that accepts legacy workers, or not."""
    if FRONTEND not in data:
        return data
    return {**data, FRONTEND: with_prefix(endpoint, data[FRONTEND], include_legacy=include_legacy)}


def _shortens_startup(endpoint: Endpoint, newest: dict[str, Any], rendered: dict[str, Any]) -> bool:
    """Whether a user has set the former default of the start-up timeout, which the inputs do not contain."""
    if endpoint.spec.worker.startup_timeout_seconds != _FORMER_STARTUP_SECONDS:
        return False
    return startup_seconds(newest[WORKER]) != startup_seconds(rendered[WORKER])


def inputs_hash(endpoint: Endpoint, config: str | None, rollout: str) -> str:
    """Digest of what determines the pod templates: cold fields of the spec, config and rollout annotation.

    Defaults are left out, so that a field that a later version adds does not change the digest of an existing
    endpoint. ``restartedAt`` is compared separately, because earlier versions do not have it.

    ``worker.startupTimeoutSeconds`` is left out if it is not set or has its former default, which the API
    server has stored in existing endpoints.
    """
    spec = endpoint.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    for field in _HOT_FIELDS:
        spec.pop(field, None)
    for section, hot in (("engine", "config"), ("frontend", "replicas")):
        rest = {key: value for key, value in spec.pop(section, {}).items() if key != hot}
        if rest:
            spec[section] = rest
    # The section itself remains, although all of its fields may have their defaults.
    spec.get("prefill", {}).pop("replicas", None)
    worker = spec.pop("worker", {})
    worker.pop("startupTimeoutSeconds", None)
    timeout = endpoint.spec.worker.startup_timeout_seconds
    is_set = "startup_timeout_seconds" in endpoint.spec.worker.model_fields_set
    if is_set and timeout != _FORMER_STARTUP_SECONDS:
        worker["startupTimeoutSeconds"] = timeout
    if worker:
        spec["worker"] = worker
    if "volumeClaimTemplate" in spec.get("cache", {}):
        spec["cache"]["volumeClaimTemplate"] = {}  # its size may grow while pods mount it
    return digest([spec, config, rollout])
