"""The remedy for pods that an admission plugin rejects: which field of the spec to change.

Reads the messages of Kubernetes 1.30 to 1.36: ``quota/v1/evaluator/core/pods.go`` ("must specify"),
``admission/plugin/resourcequota`` ("exceeded quota"), ``admission/limitranger`` and the plugins named below.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import FRONTEND, WORKER

__all__ = ["remedy"]

_UNSPECIFIED: Final = re.compile(r"failed quota: (\S+): must specify (.+)")
_EXCEEDED: Final = re.compile(r"exceeded quota: (\S+), requested: (\S+), used: ")
_NO_QUOTA: Final = re.compile(r"insufficient quota to consume: (\S+)")
_SCOPES: Final = re.compile(r"insufficient quota to match these scopes: (.+)")
_RANGE: Final = re.compile(
    r"(minimum|maximum) (\S+) usage per (Container|Pod) is (\S+?)[.,]\s+(?:No|but) (request|limit) is"
)
_RATIO: Final = re.compile(r"(\S+) max limit to request ratio per (?:Container|Pod) is ([^\s,]+)")
_INVALID: Final = re.compile(r"spec\.(containers|initContainers)\[(\d+)\]\.resources\.(requests|limits)")
_ACCOUNT: Final = re.compile(r'serviceaccount "([^"]+)" not found')
_TEMPLATE_FIELDS: Final = (
    (re.compile(r"no PriorityClass with name"), "priorityClassName"),
    (re.compile(r"RuntimeClass \S+ not found"), "runtimeClassName"),
    (re.compile(r"pod node label selector|runtimeClass\.scheduling\.nodeSelector"), "nodeSelector"),
    (re.compile(r"pod tolerations .*conflict"), "tolerations"),
)
_POLICY: Final = re.compile(r"admission webhook|ValidatingAdmissionPolicy")


def remedy(message: str, component: str, containers: Sequence[str] = ()) -> str:
    """``message``: the API server's; ``containers``: names of the pod template's containers, in order."""
    return (
        _quota_remedy(message, component, containers)
        or _limit_range_remedy(message, component, containers)
        or _template_remedy(message, component, containers)
        or "Kubernetes retries."
    )


def _quota_remedy(message: str, component: str, containers: Sequence[str]) -> str:
    if found := _UNSPECIFIED.search(message):
        fields = _unspecified_fields(found[2], component)
        return f"The ResourceQuota {found[1]} requires these fields: set {fields}."
    if found := _NO_QUOTA.search(message):
        fields = _conjunction(_requested_fields(found[1], component))
        return f"Create a ResourceQuota that allows {fields}, or remove these fields."
    if found := _SCOPES.search(message):
        field = "podTemplate.spec.priorityClassName" if "PriorityClass" in found[1] else "resources"
        return f"Create a ResourceQuota with a matching scope, or change {component}.{field}."
    if "exceeded quota" not in message:
        return ""
    if (found := _EXCEEDED.search(message)) is None:
        return "Raise the ResourceQuota, or request less."
    fields = " or ".join(dict.fromkeys(_requested_fields(found[2], component)))
    others = _other_containers(containers, f", or the resources of {{}} in {component}.podTemplate")
    return f"Raise the ResourceQuota, or lower {fields}{others if '.resources.' in fields else ''}."


def _limit_range_remedy(message: str, component: str, containers: Sequence[str]) -> str:
    fields = [*_limited_fields(message, component)]
    if not fields:
        return ""
    others = _other_containers(containers, f"; for {{}}, set it in {component}.podTemplate")
    return f"The namespace has a LimitRange: set {_conjunction(fields)}{others}."


def _template_remedy(message: str, component: str, containers: Sequence[str]) -> str:
    template = f"{component}.podTemplate"
    if "violates PodSecurity" in message:
        return f"Change {template}, or lower the Pod Security level of the namespace."
    if component != FRONTEND and (found := _ACCOUNT.search(message)):
        return f"Create the ServiceAccount {found[1]}, or set worker.serviceAccountName to another one."
    for pattern, field in _TEMPLATE_FIELDS:
        if pattern.search(message):
            return f"Change {field} in {template}.spec."
    if found := _INVALID.search(message):
        return f"Change {_resource_field(component, found[3], _container_at(containers, found))}."
    if _POLICY.search(message):
        return f"Change {template} to satisfy the policy, or change the policy. Kubernetes retries."
    return ""


def _unspecified_fields(text: str, component: str) -> str:
    """``text``: ``requests.cpu for: main,proxy; limits.memory for: main``."""
    fields: list[str] = []
    for item in text.split(";"):
        resources, _, containers = item.strip(" .]").partition(" for: ")
        # Kubernetes before 1.25 lists the resources without containers.
        listed = [name.strip() for name in containers.split(",")] if containers else [names.MAIN_CONTAINER]
        fields += [
            _resource_field(component, resource, container)
            for resource in resources.split(",")
            for container in listed
        ]
    return _conjunction(fields)


def _requested_fields(requested: str, component: str) -> list[str]:
    """``requested``: ``limits.cpu=2,pods=1``."""
    fields = []
    for item in requested.split(","):
        resource = item.partition("=")[0]
        if resource in ("pods", "count/pods"):
            fields += ["replicas" if component == WORKER else f"{component}.replicas"]
            if component != FRONTEND:
                fields.append("strategy.rollingUpdate.maxSurge")
        else:
            fields.append(_resource_field(component, resource, names.MAIN_CONTAINER))
    return fields


def _limited_fields(message: str, component: str) -> Iterable[str]:
    for bound, resource, _, amount, which in _RANGE.findall(message):
        field = _resource_field(component, f"{which}s.{resource}", names.MAIN_CONTAINER)
        yield f"{field} to at {'least' if bound == 'minimum' else 'most'} {amount}"
    for resource, ratio in _RATIO.findall(message):
        limit = _resource_field(component, f"limits.{resource}", names.MAIN_CONTAINER)
        request = _resource_field(component, f"requests.{resource}", names.MAIN_CONTAINER)
        yield f"{limit} to at most {ratio} times {request}"


def _resource_field(component: str, resource: str, container: str | None) -> str:
    """``worker.resources.requests.cpu`` for ``requests.cpu`` or, as quotas write it, ``cpu``.

    ``container``: None for an unknown init container.
    """
    kind, _, name = resource.strip().partition(".")
    if kind not in ("requests", "limits"):
        kind, name = "requests", resource.strip()
    if "/" in name:  # an extended resource: Kubernetes copies its limit to its request
        path = f'resources.limits["{name}"]'
    else:
        path = f"resources.{kind}.{name}" if name else f"resources.{kind}"
    if container == names.MAIN_CONTAINER:
        return f"{component}.{path}"
    of = f"the container {container}" if container else "an init container"
    return f"{path} of {of} in {component}.podTemplate"


def _container_at(containers: Sequence[str], found: re.Match[str]) -> str | None:
    index = int(found[2])
    if found[1] == "containers" and index < len(containers):
        return containers[index]
    return None


def _other_containers(containers: Sequence[str], text: str) -> str:
    """``text`` with the containers except the main one; empty if there are none."""
    others = [name for name in containers if name != names.MAIN_CONTAINER]
    if not others:
        return ""
    return text.format(f"the container{'s' if len(others) > 1 else ''} {', '.join(others)}")


def _conjunction(fields: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(fields))
