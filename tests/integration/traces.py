"""What an operator leaves behind: objects, writes in the audit log, Events."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from tests.integration.conftest import MANAGED, Api, Mark, Space

Object = dict[str, Any]
_OF_THE_NAMESPACE = ("ConfigMap kube-root-ca.crt", "ServiceAccount default")
_WRITES = ("create", "update", "patch", "delete")
_CROSSING = timedelta(seconds=0.5)
"""One write, and an Event that follows its status, may be on their way while the news of the deletion is."""
_ASSIGNED = ("clusterIP", "clusterIPs")


def leftovers(api: Api, namespace: str) -> list[str]:
    """Everything in the namespace that an endpoint may have brought there."""
    found = [
        f"{kind} {obj['metadata']['name']}"
        for kind in (*MANAGED, "ReplicaSet", "Pod", "VLLMEndpoint")
        for obj in api.all(kind, namespace)
    ]
    return [name for name in found if name not in _OF_THE_NAMESPACE]


def children(endpoint: Space) -> dict[tuple[str, str], Object]:
    """(kind, name) -> what its maker asked for; nothing that the API server or a controller adds."""
    found = {}
    for obj in endpoint.owned():
        content = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
        for name in _ASSIGNED:
            content.get("spec", {}).pop(name, None)
        found[obj["kind"], obj["metadata"]["name"]] = content
    return found


def writes(api: Api, since: Mark, namespace: str) -> Counter[str]:
    """``verb resource name`` of all that operators made, changed or deleted; pods without their name."""
    found: Counter[str] = Counter()
    for entry in api.requests(since, namespace=namespace):
        of = entry["objectRef"]
        if entry["verb"] in _WRITES and _taken(entry):
            name = "" if of["resource"] == "pods" else of.get("name", "")
            found[f"{entry['verb']} {of['resource']} {name}"] += 1
    return found


def events(endpoint: Space) -> Counter[str]:
    """``type reason`` of the Events on this very endpoint."""
    uid = endpoint.get()["metadata"]["uid"]
    found = endpoint.api.all("Event", endpoint.namespace)
    return Counter(f"{e['type']} {e['reason']}" for e in found if e["involvedObject"].get("uid") == uid)


def late_writes(api: Api, mark: Mark, namespace: str) -> list[str]:
    """Writes of the operator that the API server took after it had answered the deletion of the endpoint.

    But for what crossed with it: one reconcile at a time means one write at most.
    """
    deleted = None
    late, crossed = [], 0
    for entry in api.log(mark, namespace.encode()):
        of = entry.get("objectRef", {})
        if of.get("namespace") != namespace:
            continue
        if entry["verb"] == "delete" and of["resource"] == "vllmendpoints" and not deleted:
            deleted = datetime.fromisoformat(entry["stageTimestamp"])
        if (
            deleted
            and ("aiohttp" in entry["userAgent"] or "kopf" in entry["userAgent"])
            and entry["verb"] in _WRITES
            and of["resource"] != "leases"
            and (received := datetime.fromisoformat(entry["requestReceivedTimestamp"])) > deleted
            and _taken(entry)
        ):
            crossed += of["resource"] != "events"
            if received < deleted + _CROSSING and crossed <= 1:
                continue
            late.append(f"{entry['verb']} {of['resource']} {of.get('name')}")
    assert deleted, "the endpoint was deleted"
    return late


def _taken(entry: Object) -> bool:
    return entry["responseStatus"]["code"] < 400 and "dryRun" not in entry["requestURI"]
