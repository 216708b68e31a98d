"""Every CEL rule of the CRD has a specification that it refuses, and names the field and the fix."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.refused_specs import REFUSED, REFUSED_CHANGES, REFUSED_NAMES
from vllmendpoint_api import custom_resource_definition

SENTENCES = [told for *_, told in (*REFUSED, *REFUSED_CHANGES, *REFUSED_NAMES)]


def rules(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations", ())
        for value in node.values():
            yield from rules(value)
    elif isinstance(node, list):
        for value in node:
            yield from rules(value)


def paths(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Of every property, as messages name it: ``model.uri``; of a shared part also its own name."""
    for name, value in node.get("properties", {}).items():
        here = (*path, name)
        yield ".".join(here)
        yield from paths(value.get("items", value), here)


CRD = custom_resource_definition()
(VERSION,) = CRD["spec"]["versions"]
SPEC = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]
FIELDS = {"metadata.name", "resources", *paths(SPEC)}
RULES = {rule["message"]: rule for rule in rules(CRD)}


def is_of(rule: dict[str, str], sentence: str) -> bool:
    """A computed message begins and ends with texts of its expression."""
    computed = rule.get("messageExpression")
    if computed is None:
        return sentence == rule["message"]
    begins, *_, ends = re.findall(r"'([^']*)'", computed)
    return sentence.startswith(begins) and sentence.endswith(ends)


@pytest.mark.parametrize("message", sorted(RULES))
def test_every_rule_has_a_case(message):
    assert any(is_of(RULES[message], sentence) for sentence in SENTENCES), (
        f"no case in refused_specs: {message}"
    )


@pytest.mark.parametrize("message", sorted(RULES))
def test_every_message_names_a_field_and_is_a_sentence(message):
    field, colon, rest = message.partition(": ")
    assert colon, message
    assert field in FIELDS, f"no such field: {field}"
    assert rest, message
    assert not message.endswith("."), "kubectl shows several in one line"


def test_every_rule_is_found():
    assert len(RULES) >= 30, sorted(RULES)


def test_no_sentence_is_left_of_a_rule_that_is_gone():
    ours = [told for told in SENTENCES if told.partition(": ")[0] in FIELDS and "Required value" not in told]
    assert not [told for told in ours if not any(is_of(rule, told) for rule in RULES.values())]
