"""Changes by others to what the operator applies: who made one, and what to do instead. Pure."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import names

__all__ = ["Edit", "advice", "dotted", "is_owned_by", "managers"]

Path = tuple[str, ...]
_NAMED: Final = 3
_TEMPLATE: Final = ("spec", "template")
_MAIN: Final = (*_TEMPLATE, "spec", "containers", "[main]")
_ADVICE: Final[tuple[tuple[str, str | None, Path, str], ...]] = (
    (
        "Deployment",
        "worker",
        ("spec", "replicas"),
        "Set spec.replicas of the {kind} instead. An autoscaler must name the {kind} in its scaleTargetRef.",
    ),
    ("Deployment", "frontend", ("spec", "replicas"), "Set spec.frontend.replicas of the {kind} instead."),
    ("Deployment", None, ("spec", "paused"), "Set spec.paused of the {kind} instead."),
    ("Deployment", "worker", ("spec", "strategy"), "Set spec.strategy of the {kind} instead."),
    ("Deployment", None, (*_MAIN, "image"), "Set spec.worker.image of the {kind} instead."),
    ("Deployment", None, (*_MAIN, "resources"), "Set spec.{component}.resources of the {kind} instead."),
    ("Deployment", "worker", (*_MAIN, "args"), "Set spec.engine.args of the {kind} instead."),
    ("Deployment", "worker", (*_MAIN, "env"), "Set spec.worker.env of the {kind} instead."),
    ("Deployment", None, _TEMPLATE, "Set spec.{component}.podTemplate of the {kind} instead."),
    ("ConfigMap", "settings", (), "Set spec.healthCheck or spec.handlers of the {kind} instead."),
    ("ConfigMap", "config", (), "Set spec.engine.config of the {kind} instead."),
    ("PersistentVolumeClaim", None, (), "Set spec.cache.volumeClaimTemplate of the {kind} instead."),
    (
        "PodDisruptionBudget",
        None,
        (),
        "It follows spec.replicas and spec.strategy of the {kind}; set these instead.",
    ),
    ("Service", None, (), "Create a Service of your own, under another name, instead."),
    ("NetworkPolicy", None, (), "Create a NetworkPolicy of your own, under another name, instead."),
)
"""Kind, component (None: any), path, and where it belongs; the first that fits."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Fields of a child that the cluster had otherwise than they were applied."""

    kind: str
    name: str
    component: str
    """``worker``, ``frontend`` or another value of the child's component label."""
    paths: tuple[Path, ...]
    managers: tuple[str, ...] = ()
    """Field managers that own these fields; empty where none is known."""
    accepted: bool = False
    """The API server stores them so again, whatever is applied: an admission policy or webhook persists."""

    @property
    def fields(self) -> str:
        """Some of them, for a sentence."""
        named = [dotted(path) for path in self.paths]
        more = f" and {len(named) - _NAMED} more fields" if len(named) > _NAMED else ""
        return ", ".join(named[:_NAMED]) + more


def dotted(path: Path) -> str:
    """As ``kubectl explain`` writes it: ``spec.template.spec.containers[main].image``."""
    return ".".join(path).replace(".[", "[")


def managers(obj: dict[str, Any], paths: Iterable[Path], own: str) -> tuple[str, ...]:
    """Field managers in ``managedFields`` that own one of these paths; those that begin with ``own`` aside.

    A field that was removed has no owner: then the manager that wrote last, where that is after ``own``.
    """
    entries = obj["metadata"].get("managedFields") or []
    foreign = [entry for entry in entries if not _manager(entry).startswith(own)]
    wanted = tuple(paths)
    owners = [entry for entry in foreign if any(_owns(entry.get("fieldsV1") or {}, path) for path in wanted)]
    if not owners:
        ours = max((_time(entry) for entry in entries if _manager(entry).startswith(own)), default="")
        later = [e for e in foreign if e.get("subresource", "") != "status" and _time(e) >= ours]
        owners = sorted(later, key=_time)[-1:]
    return tuple(dict.fromkeys(_manager(entry) for entry in owners))


def is_owned_by(obj: dict[str, Any], path: Path, manager: str) -> bool:
    """Whether ``managedFields`` has that field manager as an owner of ``path``."""
    entries = obj["metadata"].get("managedFields") or []
    return any(_manager(entry) == manager and _owns(entry.get("fieldsV1") or {}, path) for entry in entries)


def _manager(entry: dict[str, Any]) -> str:
    return str(entry.get("manager", ""))


def _time(entry: dict[str, Any]) -> str:
    return str(entry.get("time", ""))


def _owns(fields: dict[str, Any], path: Path) -> bool:
    """``fields``: a FieldsV1. One that ends above ``path`` owns all that is below."""
    if not path:
        return True
    step, *rest = path
    inner = [fields[key] for key in _keys(fields, step)]
    return any(not found or _owns(found, tuple(rest)) for found in inner)


def _keys(fields: dict[str, Any], step: str) -> Iterator[str]:
    if not step.startswith("["):
        if f"f:{step}" in fields:
            yield f"f:{step}"
        return
    wanted = set(step[1:-1].split("/"))
    for key in fields:
        if key.startswith("k:") and {str(value) for value in json.loads(key[2:]).values()} == wanted:
            yield key


def advice(edit: Edit) -> str:
    """Where in the VLLMEndpoint that belongs which somebody changed in a child."""
    return " ".join(dict.fromkeys(_advice(edit, path) for path in edit.paths))


def _advice(edit: Edit, path: Path) -> str:
    for kind, component, prefix, text in _ADVICE:
        if kind == edit.kind and component in (None, edit.component) and path[: len(prefix)] == prefix:
            return text.format(component=edit.component, kind=names.KIND)
    return f"Change the {names.KIND} instead."
