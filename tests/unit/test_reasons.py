"""Values of the API's enums appear in the operator and the worker as members of the enums, not as strings."""

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import pytest

import vllmendpoint_api
from vllmendpoint_api import (
    CONDITION_REASONS,
    AccessMode,
    Condition,
    ConditionStatus,
    OptionRule,
    Reason,
)

ROOT: Final = Path(__file__).parents[2]
WORKER: Final = ROOT / "worker/src/vllmendpoint_worker"
SOURCES: Final = sorted([*ROOT.glob("operator/src/**/*.py"), *WORKER.glob("**/*.py")])

KUBERNETES: Final = {ConditionStatus, AccessMode}
"""Enums with values of Kubernetes, which also appear in its objects."""
CLASSES: Final = {OptionRule}
"""Enums that only the option table uses."""
OTHER_MEANINGS: Final = {
    (
        "vllmendpoint_operator/kube/object_meta.py",
        "Ready",
    ): "type of a pod's condition",
    ("vllmendpoint_operator/observe/snapshot.py", "Pending"): "phase of a pod",
    ("vllmendpoint_operator/observe/snapshot.py", "Ready"): "type of a pod's condition",
    ("vllmendpoint_operator/status/diagnosis/not_ready.py", "Ready"): "type of a pod's condition",
    ("vllmendpoint_operator/status/diagnosis/pods.py", "Ready"): "type of a pod's condition",
    ("vllmendpoint_operator/status/diagnosis/terminated.py", "OOMKilled"): "reason of a terminated container",
    ("vllmendpoint_worker/model_data/s3.py", "Error"): "key in a response of S3",
    ("vllmendpoint_worker/options/dynamo_numbers.py", "None"): "spelling of an unset number in Dynamo",
}
"""File and string to what the string means there."""


def enums() -> Iterator[type[StrEnum]]:
    for name in vllmendpoint_api.__all__:
        found = getattr(vllmendpoint_api, name)
        if isinstance(found, type) and issubclass(found, StrEnum) and found not in KUBERNETES | CLASSES:
            yield found


MEMBERS: Final = {member.value: member for enum in enums() for member in enum}


def is_all(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
    )


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants, without docstrings and the names in ``__all__``."""
    if is_all(tree):
        return
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node
        yield from literals(node)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().partition("/src/")[2]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_string_equals_the_value_of_an_enum(path):
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: use {type(member).__name__}.{member.name}"
        for node in literals(ast.parse(path.read_text()))
        if (member := MEMBERS.get(node.value)) is not None
        and (relative(path), node.value) not in OTHER_MEANINGS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_strings_with_other_meanings_exist():
    found = {
        (relative(path), node.value) for path in SOURCES for node in literals(ast.parse(path.read_text()))
    }
    assert OTHER_MEANINGS.keys() <= found


def test_the_enums_are_found():
    assert {"Reason", "Verdict", "Stage", "Outcome", "Mode", "PayloadSource", "HandlerSource"} <= {
        enum.__name__ for enum in enums()
    }


def reasons(part: str) -> set[Reason]:
    """The members of ``Reason`` that a module or a folder of the worker uses."""
    return {
        Reason[node.attr]
        for path in SOURCES
        if path.is_relative_to(WORKER / part)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }


PARTS: Final = sorted(path.name for path in WORKER.iterdir() if reasons(path.name))
VERDICTS: Final = {"probing", "serving"}
"""Folders of the worker whose reasons belong to a verdict. The reasons of the others belong to a problem."""


@pytest.mark.parametrize("part", PARTS)
def test_a_reason_of_the_worker_is_a_reason_of_the_condition(part):
    if part in VERDICTS:
        # The operator reports a worker that starts in Available.
        assert reasons(part) <= {*CONDITION_REASONS[Condition.GENERATING], Reason.STARTING}
    else:
        assert reasons(part) <= set(CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED])


def test_the_worker_uses_reasons():
    assert len(PARTS) >= 6, PARTS
