"""Permissions that a role grants, and permissions that the audit log shows in use."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Object = dict[str, Any]


class Permission(NamedTuple):
    verb: str
    group: str
    resource: str
    """The resource with its subresource, for example ``pods/log``."""


def granted(rules: Iterable[Object]) -> set[Permission]:
    return {
        Permission(verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def requests(log: Path, by: Callable[[str], bool]) -> list[Object]:
    """Audit log entries of the users for whom ``by`` returns true. An ended watch has two entries."""
    found = []
    with log.open() as lines:
        for line in lines:
            if '"system:serviceaccount:' not in line or not line.endswith("\n"):
                continue  # not of a service account, or still being written
            entry = json.loads(line)
            if by(entry["user"]["username"]):
                found.append(entry)
    return found


def used(entries: Iterable[Object]) -> set[Permission]:
    """The permissions that these requests needed. A server-side apply that creates needs `create` too."""
    found = set()
    for entry in entries:
        about = entry.get("objectRef")
        if about is None or "resource" not in about:
            continue  # discovery requests
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        permission = Permission(entry["verb"], about.get("apiGroup", ""), resource)
        found.add(permission)
        if entry["verb"] == "patch" and entry.get("responseStatus", {}).get("code") == 201:
            found.add(Permission("create", permission.group, permission.resource))
    return found
