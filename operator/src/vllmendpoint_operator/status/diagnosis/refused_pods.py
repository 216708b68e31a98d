"""What to do about pods that an admission plugin refuses: the field of the spec that it means. Pure.

The sentences are those of Kubernetes 1.30 to 1.36: ``quota/v1/evaluator/core/pods.go`` ("must specify"),
``admission/plugin/resourcequota`` ("exceeded quota"), ``admission/limitranger`` and the plugins named below.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import WORKER

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
_BY_RULE: Final = re.compile(r"admission webhook|ValidatingAdmissionPolicy")


def remedy(message: str, component: str, containers: Sequence[str] = ()) -> str:
    """``message``: the API server's; ``containers``: of the pod template, in its order."""
    return (
        _of_quota(message, component, containers)
        or _of_limit_range(message, component, containers)
        or _of_template(message, component, containers)
        or "Kubernetes retries."
    )


def _of_quota(message: str, component: str, containers: Sequence[str]) -> str:
    if found := _UNSPECIFIED.search(message):
        return f"The ResourceQuota {found[1]} requires these fields: set {_unspecified(found[2], component)}."
    if found := _NO_QUOTA.search(message):
        fields = _all_of(_exceeded(found[1], component))
        return f"Create a ResourceQuota that allows {fields}, or remove these fields."
    if found := _SCOPES.search(message):
        field = "podTemplate.spec.priorityClassName" if "PriorityClass" in found[1] else "resources"
        return f"Create a ResourceQuota with a matching scope, or change {component}.{field}."
    if "exceeded quota" not in message:
        return ""
    if (found := _EXCEEDED.search(message)) is None:
        return "Raise the ResourceQuota, or request less."
    fields = " or ".join(dict.fromkeys(_exceeded(found[2], component)))
    beside = _beside(containers, f", or the resources of {{}} in {component}.podTemplate")
    return f"Raise the ResourceQuota, or lower {fields}{beside if '.resources.' in fields else ''}."


def _of_limit_range(message: str, component: str, containers: Sequence[str]) -> str:
    fields = [*_range_fields(message, component)]
    if not fields:
        return ""
    beside = _beside(containers, f"; for {{}}, set it in {component}.podTemplate")
    return f"The namespace has a LimitRange: set {_all_of(fields)}{beside}."


def _of_template(message: str, component: str, containers: Sequence[str]) -> str:
    template = f"{component}.podTemplate"
    if "violates PodSecurity" in message:
        return f"Change {template}, or lower the Pod Security level of the namespace."
    if component == WORKER and (found := _ACCOUNT.search(message)):
        return f"Create the ServiceAccount {found[1]}, or set worker.serviceAccountName to another one."
    for pattern, field in _TEMPLATE_FIELDS:
        if pattern.search(message):
            return f"Change {field} in {template}.spec."
    if found := _INVALID.search(message):
        return f"Change {_resources(component, found[3], _at(containers, found))}."
    if _BY_RULE.search(message):
        return f"Change {template} to satisfy the policy, or change the policy. Kubernetes retries."
    return ""


def _unspecified(said: str, component: str) -> str:
    """Of ``requests.cpu for: main,proxy; limits.memory for: main``."""
    fields: list[str] = []
    for part in said.split(";"):
        listed, _, owners = part.strip(" .]").partition(" for: ")
        # Before 1.25 several resources stood in one list, without the containers.
        named = [owner.strip() for owner in owners.split(",")] if owners else [names.MAIN_CONTAINER]
        fields += [_resources(component, item, owner) for item in listed.split(",") for owner in named]
    return _all_of(fields)


def _exceeded(requested: str, component: str) -> list[str]:
    """Of ``limits.cpu=2,pods=1``."""
    fields = []
    for item in requested.split(","):
        resource = item.partition("=")[0]
        if resource in ("pods", "count/pods"):
            fields += ["replicas" if component == WORKER else "frontend.replicas"]
            if component == WORKER:
                fields.append("strategy.rollingUpdate.maxSurge")
        else:
            fields.append(_resources(component, resource, names.MAIN_CONTAINER))
    return fields


def _range_fields(message: str, component: str) -> Iterable[str]:
    for bound, resource, _, amount, which in _RANGE.findall(message):
        field = _resources(component, f"{which}s.{resource}", names.MAIN_CONTAINER)
        yield f"{field} to at {'least' if bound == 'minimum' else 'most'} {amount}"
    for resource, ratio in _RATIO.findall(message):
        limit = _resources(component, f"limits.{resource}", names.MAIN_CONTAINER)
        request = _resources(component, f"requests.{resource}", names.MAIN_CONTAINER)
        yield f"{limit} to at most {ratio} times {request}"


def _resources(component: str, resource: str, container: str | None) -> str:
    """The field of the spec, as ``worker.resources.requests.cpu``. A quota may leave ``requests.`` out."""
    kind, _, name = resource.strip().partition(".")
    if kind not in ("requests", "limits"):
        kind, name = "requests", resource.strip()
    if "/" in name:  # a device, which is asked for by its limit
        path = f'resources.limits["{name}"]'
    else:
        path = f"resources.{kind}.{name}" if name else f"resources.{kind}"
    if container == names.MAIN_CONTAINER:
        return f"{component}.{path}"
    of = f"the container {container}" if container else "an init container"
    return f"{path} of {of} in {component}.podTemplate"


def _at(containers: Sequence[str], found: re.Match[str]) -> str | None:
    index = int(found[2])
    if found[1] == "containers" and index < len(containers):
        return containers[index]
    return None


def _beside(containers: Sequence[str], text: str) -> str:
    """``text`` about the containers beside the main one; empty where there are none."""
    others = [name for name in containers if name != names.MAIN_CONTAINER]
    if not others:
        return ""
    return text.format(f"the container{'s' if len(others) > 1 else ''} {', '.join(others)}")


def _all_of(fields: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(fields))
