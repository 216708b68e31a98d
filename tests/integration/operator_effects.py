"""Observable effects of an operator: objects, writes in the audit log, Events, and their absence."""

import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from tests.integration.api_server import MANAGED, Api, AuditOffset
from tests.integration.endpoint_under_test import EndpointUnderTest

Object = dict[str, Any]
_OF_EVERY_NAMESPACE = ("ConfigMap kube-root-ca.crt", "ServiceAccount default")
_WRITES = ("create", "update", "patch", "delete")
_IN_FLIGHT = timedelta(seconds=0.5)
"""One write and its Event may be in flight while the operator receives the deletion."""
_ASSIGNED = ("clusterIP", "clusterIPs")


class QuietPeriod:
    """Becomes true once operators have sent no request in the namespace for ``seconds``."""

    def __init__(self, api: Api, namespace: str, seconds: float) -> None:
        self._api, self._namespace, self._seconds = api, namespace, seconds
        self._restart()

    def _restart(self) -> None:
        self._offset, self._since = self._api.audit_offset(), time.monotonic()

    def __call__(self) -> bool:
        if self._api.requests(self._offset, namespace=self._namespace):
            self._restart()
        return time.monotonic() - self._since > self._seconds


def leftovers(api: Api, namespace: str) -> list[str]:
    """Names of all objects in the namespace that belong to endpoints."""
    found = [
        f"{kind} {obj['metadata']['name']}"
        for kind in (*MANAGED, "ReplicaSet", "Pod", "VLLMEndpoint")
        for obj in api.all(kind, namespace)
    ]
    return [name for name in found if name not in _OF_EVERY_NAMESPACE]


def children(endpoint: EndpointUnderTest) -> dict[tuple[str, str], Object]:
    """Children by (kind, name), without metadata, status and fields that the API server assigns."""
    found = {}
    for obj in endpoint.owned():
        content = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
        for name in _ASSIGNED:
            content.get("spec", {}).pop(name, None)
        found[obj["kind"], obj["metadata"]["name"]] = content
    return found


def writes(api: Api, since: AuditOffset, namespace: str) -> Counter[str]:
    """Count the successful writes of operators by ``verb resource name``; pods have no name."""
    found: Counter[str] = Counter()
    for entry in api.requests(since, namespace=namespace):
        of = entry["objectRef"]
        if entry["verb"] in _WRITES and _is_accepted(entry):
            name = "" if of["resource"] == "pods" else of.get("name", "")
            found[f"{entry['verb']} {of['resource']} {name}"] += 1
    return found


def events(endpoint: EndpointUnderTest) -> Counter[str]:
    """Count the Events of this endpoint (by UID) by ``type reason``."""
    uid = endpoint.get()["metadata"]["uid"]
    found = endpoint.api.all("Event", endpoint.namespace)
    return Counter(f"{e['type']} {e['reason']}" for e in found if e["involvedObject"].get("uid") == uid)


def late_writes(api: Api, offset: AuditOffset, namespace: str) -> list[str]:
    """Writes of the operator that the API server accepted after it answered the deletion of the endpoint.

    One write that was in flight is allowed: the operator runs one reconcile per endpoint at a time.
    """
    deleted = None
    late, in_flight = [], 0
    for entry in api.log(offset, namespace.encode()):
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
            and _is_accepted(entry)
        ):
            in_flight += of["resource"] != "events"
            if received < deleted + _IN_FLIGHT and in_flight <= 1:
                continue
            late.append(f"{entry['verb']} {of['resource']} {of.get('name')}")
    assert deleted, "the endpoint was deleted"
    return late


def _is_accepted(entry: Object) -> bool:
    return entry["responseStatus"]["code"] < 400 and "dryRun" not in entry["requestURI"]
