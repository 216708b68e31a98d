"""The pinned rendering: an upgrade of the operator changes no pod.

What was rendered is kept in a ControllerRevision together with a digest of its inputs. As long as
the inputs are the same, the kept templates are applied as they are, whatever this version of the
operator would render.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from vllmendpoint_api import RevisionStatus, names
from vllmendpoint_operator.components import has_frontend, is_rolled_out, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .configuration import digest
from .options import Options
from .pods.dynamo import is_legacy_template, is_legacy_worker, with_namespace_suffix
from .pods.frontend import pod_template as frontend_template
from .pods.frontend import with_prefix
from .pods.workers import pod_template as worker_template

__all__ = ["HISTORY", "Revision", "pinned", "revisions"]

HISTORY: Final = 3
"""Revisions kept, the one in force included."""
_INPUTS: Final = f"{names.GROUP}/inputs-hash"


@dataclass(frozen=True, slots=True)
class _Restarts:
    """The restarts that were requested last. They are annotations of the worker's template, so that a
    request restarts the pods where nothing else changed."""

    rollout: str = ""
    """Value of the annotation; empty: none."""
    restarted_at: str = ""
    """``spec.restartedAt``; empty: none."""

    @classmethod
    def asked_by(cls, endpoint: Endpoint) -> "_Restarts":
        moment = endpoint.spec.restarted_at
        if moment is None:
            return cls(endpoint.rollout)
        # The moment counts, and not how it is spelled. The first and the last day may have none in UTC.
        with contextlib.suppress(OverflowError):
            moment = moment.astimezone(UTC)
        return cls(endpoint.rollout, moment.isoformat())

    @classmethod
    def of(cls, revision: dict[str, Any]) -> "_Restarts":
        found = revision["data"]["worker"].get("metadata", {}).get("annotations") or {}
        return cls(found.get(names.ANNOTATION_ROLLOUT, ""), found.get(names.ANNOTATION_RESTARTED_AT, ""))

    def filled_from(self, last: "_Restarts") -> "_Restarts":
        """Absence requests nothing: `kubectl replace` removes what a manifest does not have."""
        return _Restarts(self.rollout or last.rollout, self.restarted_at or last.restarted_at)

    def stamped(self, template: dict[str, Any]) -> dict[str, Any]:
        requested = {
            names.ANNOTATION_ROLLOUT: self.rollout,
            names.ANNOTATION_RESTARTED_AT: self.restarted_at,
        }
        requested = {name: value for name, value in requested.items() if value}
        if not requested:
            return template
        metadata = template["metadata"]
        annotations = {**metadata.get("annotations", {}), **requested}
        return {**template, "metadata": {**metadata, "annotations": annotations}}


@dataclass(frozen=True, slots=True)
class Revision:
    name: str
    number: int
    inputs: str
    data: dict[str, Any]
    """``{"worker": PodTemplateSpec, "frontend": PodTemplateSpec}``, the latter where there is one."""
    upgrade_available: bool

    def status(self) -> RevisionStatus:
        containers = self.data["worker"]["spec"]["containers"]
        image = next(one["image"] for one in containers if one["name"] == names.MAIN_CONTAINER)
        return RevisionStatus(name=self.name, image=image, upgrade_available=self.upgrade_available)

    def object(self, endpoint: Endpoint) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": self.name,
                "labels": endpoint.labels("revision"),
                "annotations": {_INPUTS: self.inputs},
            },
            "revision": self.number,
            "data": self.data,
        }


def revisions(observed: Observed) -> list[dict[str, Any]]:
    """The endpoint's ControllerRevisions, newest first."""
    found = [obj for (kind, _), obj in observed.children.items() if kind == "ControllerRevision"]
    return sorted(found, key=lambda obj: (-int(obj.get("revision", 0)), obj["metadata"]["name"]))


def pinned(endpoint: Endpoint, observed: Observed, options: Options, config: str | None) -> Revision:
    """The rendering in force: the newest one kept if its inputs are today's, else a new one.

    ``config`` is the name of the ConfigMap with the engine's config file (a digest of its content).
    """
    kept = revisions(observed)
    last = _Restarts.of(kept[0]) if kept else _Restarts()
    asked = _Restarts.asked_by(endpoint).filled_from(last)
    worker = asked.stamped(worker_template(endpoint, options, config))
    fresh: dict[str, Any] = {"worker": with_namespace_suffix(worker)}
    if has_frontend(endpoint):
        fresh["frontend"] = frontend_template(endpoint, options)
    plain = bool(kept) and _plain_workers_remain(endpoint, observed, kept[0]["data"])
    # Also without what was filled in: it may be an annotation of the user's podTemplate.
    digests = {value: _inputs(endpoint, config, value) for value in {asked.rollout, endpoint.rollout}}
    if kept and asked.restarted_at == last.restarted_at:
        newest = kept[0]
        inputs = str((newest["metadata"].get("annotations") or {}).get(_INPUTS, ""))
        if inputs in digests.values():
            final = newest["data"] if plain else _accepting(endpoint, newest["data"], plain=False)
            same = final == newest["data"]
            return Revision(
                name=newest["metadata"]["name"] if same else _name(endpoint, inputs, final),
                number=int(newest["revision"]) + (not same),
                inputs=inputs,
                data=final,
                upgrade_available=_accepting(endpoint, final, plain=False) != fresh,
            )
    inputs = digests[asked.rollout]
    number = int(kept[0]["revision"]) + 1 if kept else 1
    data = _accepting(endpoint, fresh, plain=plain)
    return Revision(_name(endpoint, inputs, data), number, inputs, data, upgrade_available=False)


def _name(endpoint: Endpoint, inputs: str, data: dict[str, Any]) -> str:
    """The inputs are part of the name: one rendering may come from two inputs (a rollout asked for that
    changes nothing else), and data of a ControllerRevision can never be changed.
    """
    return f"{endpoint.name}-{digest([inputs, data])}"


def _plain_workers_remain(endpoint: Endpoint, observed: Observed, newest: dict[str, Any]) -> bool:
    """Whether workers in the endpoint's plain Dynamo namespace run, or may still be created."""
    deployment = observed.child("Deployment", workers_name(endpoint))
    if is_legacy_template(newest["worker"]):
        return True
    if any(is_legacy_worker(pod) and not pod.finished for pod in observed.workers):
        return True
    # An older ReplicaSet may be about to replace a pod that it has lost.
    return deployment is not None and not is_rolled_out(deployment) and _accepts_plain(endpoint, newest)


def _accepting(endpoint: Endpoint, data: dict[str, Any], *, plain: bool) -> dict[str, Any]:
    """``data`` with a frontend that accepts workers in the plain Dynamo namespace too, or not."""
    if "frontend" not in data:
        return data
    return {**data, "frontend": with_prefix(endpoint, data["frontend"], include_legacy=plain)}


def _accepts_plain(endpoint: Endpoint, data: dict[str, Any]) -> bool:
    return _accepting(endpoint, data, plain=False) != data


def _inputs(endpoint: Endpoint, config: str | None, rollout: str) -> str:
    """Digest of all that asks for other pods: the cold part of the spec, config, rollout annotation.

    Without defaults: a field that a later version adds must not change the digest of what stands. Without
    ``restartedAt``, which is compared by itself: an earlier version, after a rollback, does not know it.
    """
    spec = endpoint.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    for hot in ("replicas", "healthCheck", "handlers", "strategy", "paused", "restartedAt"):
        spec.pop(hot, None)
    for section, hot in (("engine", "config"), ("frontend", "replicas")):
        rest = {key: value for key, value in spec.pop(section, {}).items() if key != hot}
        if rest:
            spec[section] = rest
    if "volumeClaimTemplate" in spec.get("cache", {}):
        spec["cache"]["volumeClaimTemplate"] = {}  # the claim may grow below the pods
    return digest([spec, config, rollout])
