"""Every CEL rule of the CRD has a specification that it rejects, and its message names the field."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rejected_specs import REJECTED, REJECTED_CHANGES, REJECTED_NAMES
from vllmendpoint_api import custom_resource_definition

MESSAGES = [message for *_, message in (*REJECTED, *REJECTED_CHANGES, *REJECTED_NAMES)]


def rules(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations", ())
        for value in node.values():
            yield from rules(value)
    elif isinstance(node, list):
        for value in node:
            yield from rules(value)


def paths(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """The path of each property, as messages contain it: ``model.uri``. Items of a list have no index."""
    for name, value in node.get("properties", {}).items():
        here = (*path, name)
        yield ".".join(here)
        yield from paths(value.get("items", value), here)


CRD = custom_resource_definition()
(VERSION,) = CRD["spec"]["versions"]
SPEC = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]
FIELDS = {"metadata.name", "resources", *paths(SPEC)}
RULES = {rule["message"]: rule for rule in rules(CRD)}


def belongs_to(rule: dict[str, str], message: str) -> bool:
    """A computed message begins with the first and ends with the last text of its expression."""
    computed = rule.get("messageExpression")
    if computed is None:
        return message == rule["message"]
    begins, *_, ends = re.findall(r"'([^']*)'", computed)
    return message.startswith(begins) and message.endswith(ends)


@pytest.mark.parametrize("message", sorted(RULES))
def test_every_rule_rejects_a_specification(message):
    assert any(belongs_to(RULES[message], each) for each in MESSAGES), f"no case in rejected_specs: {message}"


@pytest.mark.parametrize("message", sorted(RULES))
def test_every_message_names_a_field(message):
    field, colon, rest = message.partition(": ")
    assert colon, message
    assert field in FIELDS, f"no such field: {field}"
    assert rest, message
    assert not message.endswith("."), "kubectl shows several messages in one line"


def test_the_crd_has_at_least_30_rules():
    assert len(RULES) >= 30, sorted(RULES)


def test_every_expected_message_belongs_to_a_rule():
    of_the_crd = [
        message
        for message in MESSAGES
        if message.partition(": ")[0] in FIELDS and "Required value" not in message
    ]
    assert not [
        message for message in of_the_crd if not any(belongs_to(rule, message) for rule in RULES.values())
    ]
