"""Permissions: the roles of the chart and its admission policies."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tests.unit.rendered_chart import (
    ALL_SET,
    CHART,
    CLUSTER_SCOPED,
    NAME,
    VALUES,
    Object,
    kinds_of,
    one,
    template,
)
from vllmendpoint_api import VLLMEndpointSpec
from vllmendpoint_operator.components import workers_name
from vllmendpoint_operator.kube import kinds
from vllmendpoint_operator.kube.kinds import Kind
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.pods.dynamo import base_namespace, with_namespace_suffix
from vllmendpoint_operator.plan.pods.workers import pod_template

CHILD = {"get", "list", "watch", "create", "patch", "delete"}
WATCHED = {"list", "watch"}


def granted(role: Object) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def resource(kind: Kind, subresource: str = "") -> tuple[str, str]:
    return kind.group, kind.plural + subresource


@pytest.mark.parametrize(
    ("values", "kind", "roles"),
    [({}, "ClusterRole", "clusterroles"), ({"watchNamespaces": ["a"]}, "Role", "roles")],
)
def test_the_operator_has_exactly_the_permissions_that_it_uses(values: Object, kind: str, roles: str) -> None:
    role = one(template(values), kind, NAME)
    expected = {
        **{resource(child): CHILD for child in kinds.MANAGED},
        **{resource(watched): WATCHED for watched in (kinds.ENDPOINT, kinds.REPLICA_SET)},
        resource(kinds.POD): {*WATCHED, "patch"},
        resource(kinds.EVENT): {"create"},
        resource(kinds.ENDPOINT, "/status"): {"patch"},
        resource(kinds.ENDPOINT, "/finalizers"): {"update"},
        ("rbac.authorization.k8s.io", roles): {"bind"},
    }
    assert granted(role) == expected
    (bind,) = [rule for rule in role["rules"] if "bind" in rule["verbs"]]
    assert bind["resourceNames"] == [f"{NAME}-worker"]


def test_the_operator_may_use_only_its_own_lease() -> None:
    role = one(template(), "Role")
    assert role["metadata"]["namespace"] == "ops"
    assert granted(role) == {resource(kinds.LEASE): {"get", "create", "update"}}
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, [NAME]]


def test_no_role_reads_secrets_or_has_wildcards() -> None:
    for values in ({}, ALL_SET):
        for doc in template(values):
            if doc["kind"] in ("Role", "ClusterRole"):
                text = json.dumps(doc["rules"])
                assert "secrets" not in text
                assert '"*"' not in text


def test_namespaced_mode_creates_nothing_cluster_scoped() -> None:
    values = {"watchNamespaces": ["a", "b"], "crds": {"enabled": False}}
    docs = template(values)
    assert not kinds_of(docs) & {*CLUSTER_SCOPED, "CustomResourceDefinition"}
    for doc in docs:
        assert doc["metadata"]["namespace"] in ("ops", "a", "b"), doc
    for namespace in ("a", "b"):
        names = {
            (doc["kind"], doc["metadata"]["name"])
            for doc in docs
            if doc["metadata"]["namespace"] == namespace
        }
        assert names == {("Role", NAME), ("RoleBinding", NAME), ("Role", f"{NAME}-worker")}
        (subject,) = one(docs, "RoleBinding", NAME, namespace)["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": NAME, "namespace": "ops"}
    every = {**values, "rbac": {"aggregateRoles": True}, "admissionPolicy": {"enabled": True}}
    assert not kinds_of(template({**ALL_SET, **every})) & CLUSTER_SCOPED


def test_workers_have_the_same_permissions_in_both_modes() -> None:
    cluster, namespaced = template(), template({"watchNamespaces": ["a"]})
    worker = f"{NAME}-worker"
    found = granted(one(cluster, "ClusterRole", worker))
    assert found.pop(("serving.vllmendpoint.dev", "workers")) == {"run"}, (
        "the admission policy identifies workers by it"
    )
    assert found == granted(one(namespaced, "Role", worker))
    assert found == {
        ("discovery.k8s.io", "endpointslices"): {"list", "watch"},
        ("nvidia.com", "dynamoworkermetadatas"): {"list", "watch", "create", "patch"},
    }


def test_roles_are_aggregated_unless_disabled() -> None:
    docs = template()
    for role in ("view", "edit", "admin"):
        labels = one(docs, "ClusterRole", f"{NAME}-{role}")["metadata"]["labels"]
        assert labels[f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    without = template({"rbac": {"aggregateRoles": False}, "admissionPolicy": {"enabled": False}})
    names = {doc["metadata"]["name"] for doc in without if doc["kind"] in CLUSTER_SCOPED}
    assert names == {NAME, f"{NAME}-worker"}


def spec_has(path: str) -> bool:
    model: Any = VLLMEndpointSpec
    for step in path.split("."):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if step not in fields:
            return False
        kinds_ = [fields[step].annotation, *getattr(fields[step].annotation, "__args__", ())]
        model = next((kind for kind in kinds_ if hasattr(kind, "model_fields")), None)
    return True


def policy(values: Object | None = None) -> Object | None:
    docs = template(values)
    name = f"{NAME}-pod-rights"
    if not any(doc["metadata"]["name"] == name for doc in docs):
        return None
    return one(docs, "ValidatingAdmissionPolicy", name)


def messages(found: Object | None) -> list[str]:
    assert found is not None
    return [validation["message"].split(":")[0] for validation in found["spec"]["validations"]]


LOCKED_FIELDS = "model, engine, prefill.engine, cache.persistentVolumeClaim"
"""The fields in the message about changes while the endpoint has a Secret or an identity."""
CLAIMS = ["cache.persistentVolumeClaim", "model.uri"]


def test_pod_rights_require_permission_to_create_pods() -> None:
    found = policy()
    begins = messages(found)
    assert begins == [*VALUES["admissionPolicy"]["podRights"], LOCKED_FIELDS, *CLAIMS]
    assert all(spec_has(path) for path in (*begins[: -1 - len(CLAIMS)], *CLAIMS))
    assert not spec_has("worker.nothing")
    assert found is not None
    first = found["spec"]["validations"][0]["expression"]
    assert "!object.spec.?worker.?serviceAccountName.hasValue()" in first


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"podRights": [], "claims": False}, None),
        ({"podRights": [], "claims": True}, CLAIMS),
        # Handlers add no Secret or identity to the pod, so they lock no field. worker.env can add a Secret.
        ({"podRights": ["handlers"], "claims": False}, ["handlers"]),
        ({"podRights": ["worker.env"], "claims": False}, ["worker.env", LOCKED_FIELDS]),
    ],
    ids=["nothing", "claims", "code", "secrets"],
)
def test_each_part_of_the_policy_can_be_disabled(values: Object, expected: list[str] | None) -> None:
    found = policy({"admissionPolicy": values})
    assert (messages(found) if found else None) == expected


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted names of the fields of a spec that have no fields of their own in the schema."""
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}".strip(".")
        inner = list(models(field.annotation))
        yield from [leaf for kind in inner for leaf in fields(kind, here)] or [here]


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)


def below(field: str, paths: Iterable[str]) -> bool:
    return any(f"{field}.".startswith(f"{path}.") for path in paths)


HARMLESS = (
    "model.name",
    "model.type",
    "healthCheck",
    "frontend.mode",
    "frontend.migrationLimit",
    "frontend.routing",
    "worker.startupTimeoutSeconds",
    "paused",
    "restartedAt",
)
"""Fields that give no permission: they affect requests and timeouts, or restart the workers, which a user who
may change the engine's arguments can do anyway."""


def test_every_field_of_a_spec_is_closed_documented_or_harmless() -> None:
    """A new field is either closed to users who may not create pods, or docs/tasks/secure.md explains it."""
    text = (CHART.parents[1] / "docs/tasks/secure.md").read_text()
    table = text.split("<!-- left open", 1)[1].split("<!-- /left open -->", 1)[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert all(spec_has(path) for path in (*documented, *HARMLESS))
    closed = [*VALUES["admissionPolicy"]["podRights"], "cache.persistentVolumeClaim"]
    for field in fields(VLLMEndpointSpec):
        places = [
            name
            for name, paths in (("closed", closed), ("documented", documented), ("harmless", HARMLESS))
            if below(field, paths)
        ]
        assert len(places) == 1, (field, places)


def test_the_policy_derives_the_dynamo_namespace_that_the_operator_renders() -> None:
    """The policy derives DYN_NAMESPACE from the name of the pod. The operator truncates long namespaces."""
    policy = one(template(), "ValidatingAdmissionPolicy", f"{NAME}-worker")
    own = {item["name"]: item["expression"] for item in policy["spec"]["variables"]}["own"]
    (prefix_length,) = re.findall(r"substring\(0, (\d+)\) \+ '-\[0-9a-f\]\{10\}'", own)
    (suffix,) = re.findall(r"\+ '(\(_.*\$)'", own)
    (max_length,) = re.findall(r"size\(\) <= (\d+)", own)
    spec = VLLMEndpointSpec.model_validate({"model": {"uri": "file:///m"}})

    def rendered(namespace: str, name: str) -> tuple[str, str]:
        endpoint = Endpoint(
            namespace=namespace, name=name, uid="u", generation=1, spec=spec, status=None, rollout=""
        )
        template = pod_template(endpoint, Options(worker_image="i", frontend_image="f"), None)
        worker = with_namespace_suffix({"worker": template})["worker"]
        env = {item["name"]: item.get("value") for item in worker["spec"]["containers"][0]["env"]}
        own = f"{env['DYN_NAMESPACE']}-{env['DYN_NAMESPACE_WORKER_SUFFIX']}"
        assert own.startswith(f"{base_namespace(endpoint)}_")
        for part in ("", "-0123456789"):
            assert re.fullmatch(suffix, (own + part).removeprefix(base_namespace(endpoint)))
        return base_namespace(endpoint), workers_name(endpoint)

    assert rendered("team-a", "smollm") == ("team-a-smollm", "smollm-workers")
    edge = "n" * (int(max_length) - 2)
    assert rendered(edge, "e")[0] == f"{edge}-e", "the longest namespace that is not truncated"
    long, _ = rendered("n" * 63, "e" * 40)
    assert len(long) == int(max_length)
    assert re.fullmatch("n" * int(prefix_length) + "-[0-9a-f]{10}", long)
