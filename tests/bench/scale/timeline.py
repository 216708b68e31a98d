"""Times of events: conditions from a watch, requests from the audit log."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from .control_plane import GROUP, Api

__all__ = ["ConditionWatch", "Requests", "percentile", "requests"]

CHILDREN: Final = frozenset(
    {
        "controllerrevisions",
        "serviceaccounts",
        "rolebindings",
        "configmaps",
        "networkpolicies",
        "services",
        "deployments",
    }
)
_WRITES: Final = frozenset({"create", "update", "patch", "delete"})
_READS: Final = frozenset({"get", "list"})


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest one of ``values``; ``part`` from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


class ConditionWatch:
    """The current conditions of all endpoints. ``ready``: ``time.time()`` of the first Ready by endpoint
    name."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.ready: dict[str, float] = {}
        self.conditions: dict[str, dict[str, tuple[str, str]]] = {}
        self.changed = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for event in self._api.watch(f"/apis/{GROUP}/v1alpha1/vllmendpoints"):
            now = self.changed = time.time()
            name = event["object"]["metadata"]["name"]
            found = event["object"].get("status", {}).get("conditions", [])
            self.conditions[name] = {entry["type"]: (entry["status"], entry["reason"]) for entry in found}
            if self.conditions[name].get("Ready", ("", ""))[0] == "True":
                self.ready.setdefault(name, now)


class Requests:
    """The requests of one operator in a part of the audit log, without its lease and its watches."""

    def __init__(self, entries: Iterator[dict[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self.child_writes: dict[str, list[float]] = {}
        """Times of the writes of children, by endpoint."""
        self.last_write = 0.0
        for entry in entries:
            reference = entry.get("objectRef", {})
            resource, verb = reference.get("resource", ""), entry["verb"]
            if resource == "leases" or verb == "watch":
                continue
            failed = "" if entry["responseStatus"]["code"] < 400 else f" {entry['responseStatus']['code']}"
            parts = filter(None, (resource, reference.get("subresource")))
            self.counts[f"{verb} {'/'.join(parts)}{failed}"] += 1
            if verb in _WRITES:
                self.last_write = datetime.fromisoformat(entry["stageTimestamp"]).timestamp()
                if resource in CHILDREN and not failed:
                    endpoint = "-".join(reference["name"].split("-")[:2])
                    self.child_writes.setdefault(endpoint, []).append(self.last_write)

    def of(self, verbs: frozenset[str]) -> int:
        return sum(count for what, count in self.counts.items() if what.split()[0] in verbs)

    @property
    def writes(self) -> int:
        return self.of(_WRITES)

    @property
    def reads(self) -> int:
        return self.of(_READS)

    @property
    def events(self) -> int:
        return self.counts["create events"]


def requests(audit: Path, agents: Sequence[str], start: int) -> Requests:
    """The requests after byte ``start`` of the log; ``agents``: prefixes of the user agent."""

    def entries() -> Iterator[dict[str, Any]]:
        with audit.open("rb") as log:
            log.seek(start)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                entry = json.loads(line)
                if entry["stage"] == "ResponseComplete" and entry["userAgent"].startswith(tuple(agents)):
                    yield entry

    return Requests(entries())
