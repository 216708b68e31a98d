"""Who changed a child, and which field to set instead."""

import pytest

from vllmendpoint_operator.apply.edits import Edit, field_managers
from vllmendpoint_operator.controller.publish.events import edit_events, event_body

OURS = "vllmendpoint-operator"
MAIN = ("spec", "template", "spec", "containers", "[main]")


def entry(manager, fields, **more):
    return {"manager": manager, "operation": "Update", "fieldsV1": fields, **more}


def spec(**fields):
    return {"f:spec": {f"f:{name}": value for name, value in fields.items()}}


CONTAINER = {"f:containers": {'k:{"name":"main"}': {".": {}, "f:image": {}, "f:name": {}}}}
PORT = {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {"f:targetPort": {}}}}


@pytest.mark.parametrize(
    ("entries", "path", "found"),
    [
        ([entry("hpa", spec(replicas={}), subresource="scale")], ("spec", "replicas"), ("hpa",)),
        ([entry("a", spec(paused={})), entry("b", spec(replicas={}))], ("spec", "replicas"), ("b",)),
        ([entry("a", spec(replicas={})), entry("b", spec(replicas={}))], ("spec", "replicas"), ("a", "b")),
        ([entry("a", spec(replicas={})), entry("a", spec(replicas={}))], ("spec", "replicas"), ("a",)),
        ([entry("set", spec(template={"f:spec": CONTAINER}))], (*MAIN, "image"), ("set",)),
        ([entry("set", spec(template={"f:spec": CONTAINER}))], (*MAIN, "args"), ("set",)),
        (
            [entry("e", spec(selector={}), time="2026-01-01"), entry(OURS, {}, time="2026-01-02")],
            ("spec", "selector", "a"),
            ("e",),
        ),
        ([entry("e", spec(ports=PORT["f:ports"]))], ("spec", "ports", "[80/TCP]", "targetPort"), ("e",)),
        (
            [entry(OURS, spec(replicas={})), entry(f"{OURS}-scale", spec(replicas={}))],
            ("spec", "replicas"),
            (),
        ),
        ([], ("spec", "replicas"), ()),
    ],
)
def test_field_managers_that_own_a_path(entries, path, found):
    assert field_managers({"metadata": {"managedFields": entries}}, [path], OURS) == found


def test_the_last_writer_is_the_manager_of_a_removed_field():
    entries = [
        entry("before", {}, time="2026-01-01T10:00:00Z"),
        entry(OURS, spec(paused={}), time="2026-01-01T11:00:00Z"),
        entry("kubectl-edit", {}, time="2026-01-01T12:00:00Z"),
        entry("kube-controller-manager", {}, time="2026-01-01T13:00:00Z", subresource="status"),
    ]
    obj = {"metadata": {"managedFields": entries}}
    assert field_managers(obj, [("spec", "strategy")], OURS) == ("kubectl-edit",)
    entries.pop(2)
    assert field_managers(obj, [("spec", "strategy")], OURS) == (), (
        "a manager that wrote before the operator did not remove the field"
    )


def edit_event(kind, component, *paths, managers=("m",), **more):
    (transition,) = edit_events([Edit(kind, "e-x", component, paths, managers, **more)])
    return transition


@pytest.mark.parametrize(
    ("kind", "component", "path", "instead"),
    [
        (
            "Deployment",
            "worker",
            ("spec", "replicas"),
            "Set spec.replicas of the VLLMEndpoint instead. An",
        ),
        ("Deployment", "frontend", ("spec", "replicas"), "Set spec.frontend.replicas of"),
        ("Deployment", "prefill", ("spec", "replicas"), "Set spec.prefill.replicas of"),
        ("Deployment", "prefill", (*MAIN, "image"), "Set spec.worker.image of"),
        ("Deployment", "prefill", (*MAIN, "resources"), "Set spec.prefill.resources of"),
        ("Deployment", "prefill", (*MAIN, "args"), "Set spec.prefill.engine.args of"),
        ("Deployment", "prefill", (*MAIN, "env", "[A]"), "Set spec.worker.env of"),
        ("Deployment", "prefill", ("spec", "template", "spec", "volumes"), "Set spec.prefill.podTemplate of"),
        ("Deployment", "prefill", ("spec", "strategy", "type"), "Set spec.strategy of"),
        (
            "PodDisruptionBudget",
            "prefill",
            ("spec",),
            "It depends on spec.prefill.replicas and spec.strategy",
        ),
        ("PodDisruptionBudget", "worker", ("spec",), "It depends on spec.replicas and spec.strategy"),
        ("Deployment", "worker", (*MAIN, "image"), "Set spec.worker.image of"),
        ("Deployment", "frontend", (*MAIN, "image"), "Set spec.frontend.image of"),
        ("Deployment", "worker", (*MAIN, "args"), "Set spec.engine.args of"),
        ("Deployment", "worker", (*MAIN, "env", "[A]"), "Set spec.worker.env of"),
        ("Deployment", "frontend", (*MAIN, "env", "[A]"), "Set spec.frontend.podTemplate of"),
        ("Deployment", "frontend", (*MAIN, "resources", "limits", "cpu"), "Set spec.frontend.resources of"),
        ("Deployment", "worker", ("spec", "template", "spec", "volumes"), "Set spec.worker.podTemplate of"),
        ("Deployment", "worker", ("spec", "strategy", "type"), "Set spec.strategy of"),
        ("Deployment", "worker", ("spec", "paused"), "Set spec.paused of"),
        ("ConfigMap", "settings", ("data", "settings.json"), "Set spec.healthCheck or spec.handlers of"),
        ("ConfigMap", "config", ("data", "config.yaml"), "Set spec.engine.config of"),
        ("Service", "worker", ("spec", "ports"), "Create a Service of your own"),
        ("RoleBinding", "worker", ("subjects",), "Change the VLLMEndpoint instead."),
    ],
)
def test_the_event_names_the_field_to_set_instead(kind, component, path, instead):
    found = edit_event(kind, component, path)
    assert (found.type, found.reason) == ("Warning", "ChangeReverted")
    assert found.message.startswith("Field manager m changed ")
    assert f" of the {kind} e-x. The operator has restored what the VLLMEndpoint specifies. {instead}" in (
        found.message
    )


def test_the_event_names_at_most_three_fields():
    paths = [("spec", name) for name in "abcde"]
    assert (
        "spec.a, spec.b, spec.c and 2 more fields of the Deployment"
        in edit_event("Deployment", "worker", *paths).message
    )


def test_a_change_by_an_unknown_manager_is_reported():
    assert edit_event("Service", "worker", ("spec",), managers=()).message.startswith(
        "Another client changed spec of"
    )


def test_a_repeated_change_has_one_event(make_endpoint, noon):
    endpoint = make_endpoint()

    def name(*path, manager="m"):
        found = edit_event("Deployment", "worker", path, managers=(manager,))
        return event_body(endpoint, found, noon, "r")["metadata"]["name"]

    assert name("spec", "replicas") == name("spec", "replicas")
    names = {name("spec", "replicas"), name("spec", "paused"), name("spec", "replicas", manager="n")}
    assert len(names) == 3
    accepted = edit_event("Deployment", "worker", ("spec",), managers=(), accepted=True)
    assert (accepted.type, accepted.reason) == ("Normal", "AdmissionChangeAccepted")
