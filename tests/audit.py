"""Rights: those that a role grants, and those that the API server's audit log shows in use."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Object = dict[str, Any]


class Right(NamedTuple):
    verb: str
    group: str
    resource: str
    """With its subresource, as rules have it: ``pods/log``."""


def granted(rules: Iterable[Object]) -> set[Right]:
    return {
        Right(verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def requests(log: Path, by: Callable[[str], bool]) -> list[Object]:
    """The entries of an audit log from users that are ``by``'s; a watch that has ended is there twice."""
    found = []
    with log.open() as lines:
        for line in lines:
            if '"system:serviceaccount:' not in line or not line.endswith("\n"):
                continue  # cheaper than reading it; or still being written
            entry = json.loads(line)
            if by(entry["user"]["username"]):
                found.append(entry)
    return found


def used(entries: Iterable[Object]) -> set[Right]:
    """What these requests needed. A server-side apply that made the object needed `create` as well."""
    found = set()
    for entry in entries:
        about = entry.get("objectRef")
        if about is None or "resource" not in about:
            continue  # /api, /apis: what the API server has
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        right = Right(entry["verb"], about.get("apiGroup", ""), resource)
        found.add(right)
        if entry["verb"] == "patch" and entry.get("responseStatus", {}).get("code") == 201:
            found.add(right._replace(verb="create"))
    return found
