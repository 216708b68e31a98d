"""Changes of children by other clients: who made them, and which field to set instead. Pure."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import names

__all__ = ["Edit", "Path", "advice", "dotted", "field_managers", "is_managed_by"]

Path = tuple[str, ...]
"""As in :func:`vllmendpoint_operator.kube.differences.differences`."""
_NAMED_FIELDS: Final = 3
_TEMPLATE: Final = ("spec", "template")
_MAIN: Final = (*_TEMPLATE, "spec", "containers", "[main]")
_ADVICE: Final[tuple[tuple[str, str | None, Path, str], ...]] = (
    (
        "Deployment",
        "worker",
        ("spec", "replicas"),
        "Set spec.replicas of the {kind} instead. An autoscaler must name the {kind} in its scaleTargetRef.",
    ),
    ("Deployment", None, ("spec", "replicas"), "Set spec.{component}.replicas of the {kind} instead."),
    ("Deployment", None, ("spec", "paused"), "Set spec.paused of the {kind} instead."),
    ("Deployment", "worker", ("spec", "strategy"), "Set spec.strategy of the {kind} instead."),
    ("Deployment", "prefill", ("spec", "strategy"), "Set spec.strategy of the {kind} instead."),
    ("Deployment", "prefill", (*_MAIN, "image"), "Set spec.worker.image of the {kind} instead."),
    ("Deployment", None, (*_MAIN, "image"), "Set spec.{component}.image of the {kind} instead."),
    ("Deployment", None, (*_MAIN, "resources"), "Set spec.{component}.resources of the {kind} instead."),
    ("Deployment", "worker", (*_MAIN, "args"), "Set spec.engine.args of the {kind} instead."),
    ("Deployment", "worker", (*_MAIN, "env"), "Set spec.worker.env of the {kind} instead."),
    ("Deployment", "prefill", (*_MAIN, "args"), "Set spec.prefill.engine.args of the {kind} instead."),
    ("Deployment", "prefill", (*_MAIN, "env"), "Set spec.worker.env of the {kind} instead."),
    ("Deployment", None, _TEMPLATE, "Set spec.{component}.podTemplate of the {kind} instead."),
    ("ConfigMap", "settings", (), "Set spec.healthCheck or spec.handlers of the {kind} instead."),
    ("ConfigMap", "config", (), "Set spec.engine.config of the {kind} instead."),
    ("PersistentVolumeClaim", None, (), "Set spec.cache.volumeClaimTemplate of the {kind} instead."),
    (
        "PodDisruptionBudget",
        "prefill",
        (),
        "It depends on spec.prefill.replicas and spec.strategy of the {kind}. Set these instead.",
    ),
    (
        "PodDisruptionBudget",
        None,
        (),
        "It depends on spec.replicas and spec.strategy of the {kind}. Set these instead.",
    ),
    ("Service", None, (), "Create a Service of your own, under another name, instead."),
    ("NetworkPolicy", None, (), "Create a NetworkPolicy of your own, under another name, instead."),
)
"""Kind, component (None: any), prefix of the path, and advice; the first match applies."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Fields of a child that the cluster stored otherwise than the operator applied them."""

    kind: str
    name: str
    component: str
    """Value of the child's component label, such as ``worker`` or ``frontend``."""
    paths: tuple[Path, ...]
    managers: tuple[str, ...] = ()
    """Field managers that own these fields; empty if unknown."""
    accepted: bool = False
    """Admission changes the fields again after every apply, so the operator accepts the change."""

    @classmethod
    def of(
        cls,
        child: dict[str, Any],
        paths: tuple[Path, ...],
        managers: tuple[str, ...] = (),
        *,
        accepted: bool = False,
    ) -> "Edit":
        metadata = child["metadata"]
        component = str((metadata.get("labels") or {}).get(names.LABEL_COMPONENT, ""))
        return cls(child["kind"], metadata["name"], component, paths, managers, accepted)

    @property
    def fields(self) -> str:
        """The first three fields and the number of the others, for a message."""
        named = [dotted(path) for path in self.paths]
        more = f" and {len(named) - _NAMED_FIELDS} more fields" if len(named) > _NAMED_FIELDS else ""
        return ", ".join(named[:_NAMED_FIELDS]) + more


def dotted(path: Path) -> str:
    """``spec.template.spec.containers[main].image``"""
    return ".".join(path).replace(".[", "[")


def field_managers(obj: dict[str, Any], paths: Iterable[Path], own_prefix: str) -> tuple[str, ...]:
    """Field managers in ``managedFields`` that own one of ``paths``, without those with the prefix.

    A removed field has no owner. Then the result is the last writer, if it wrote after the operator.
    """
    entries = obj["metadata"].get("managedFields") or []
    foreign = [entry for entry in entries if not _manager(entry).startswith(own_prefix)]
    changed = tuple(paths)
    owners = [entry for entry in foreign if any(_owns(entry.get("fieldsV1") or {}, path) for path in changed)]
    if not owners:
        own = [_time(entry) for entry in entries if _manager(entry).startswith(own_prefix)]
        last_apply = max(own, default="")
        later = [
            entry
            for entry in foreign
            if entry.get("subresource", "") != "status" and _time(entry) >= last_apply
        ]
        owners = sorted(later, key=_time)[-1:]
    return tuple(dict.fromkeys(_manager(entry) for entry in owners))


def is_managed_by(obj: dict[str, Any], path: Path, manager: str) -> bool:
    """Whether ``managedFields`` has the field manager ``manager`` as an owner of ``path``."""
    entries = obj["metadata"].get("managedFields") or []
    return any(_manager(entry) == manager and _owns(entry.get("fieldsV1") or {}, path) for entry in entries)


def _manager(entry: dict[str, Any]) -> str:
    return str(entry.get("manager", ""))


def _time(entry: dict[str, Any]) -> str:
    return str(entry.get("time", ""))


def _owns(fields: dict[str, Any], path: Path) -> bool:
    """``fields``: a FieldsV1. A field without children in it owns all fields below."""
    if not path:
        return True
    step, *rest = path
    inner = [fields[key] for key in _keys(fields, step)]
    return any(not found or _owns(found, tuple(rest)) for found in inner)


def _keys(fields: dict[str, Any], step: str) -> Iterator[str]:
    """The keys of a FieldsV1 for one step of a path. ``[80/TCP]`` selects a list item by its merge keys."""
    if not step.startswith("["):
        if f"f:{step}" in fields:
            yield f"f:{step}"
        return
    values = set(step[1:-1].split("/"))
    for key in fields:
        if key.startswith("k:") and {str(value) for value in json.loads(key[2:]).values()} == values:
            yield key


def advice(edit: Edit) -> str:
    """Sentences that name the fields of the VLLMEndpoint to set instead."""
    return " ".join(dict.fromkeys(_advice(edit, path) for path in edit.paths))


def _advice(edit: Edit, path: Path) -> str:
    for kind, component, prefix, text in _ADVICE:
        if kind == edit.kind and component in (None, edit.component) and path[: len(prefix)] == prefix:
            return text.format(component=edit.component, kind=names.KIND)
    return f"Change the {names.KIND} instead."
