"""``spec.prefill``: the second Deployment, what its pods differ in, and what an endpoint without it keeps."""

import json

import pytest

from vllmendpoint_api import Reason, names
from vllmendpoint_operator.desired_state import Scaling
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.plan.configuration import digest
from vllmendpoint_operator.plan.planner import scaling
from vllmendpoint_operator.plan.pods.dropped_nulls import find_dropped_nulls
from vllmendpoint_operator.plan.pods.dynamo import with_namespace_suffix

MAIN = {"spec": {"containers": [{"name": "main", "env": [{"name": "A", "value": "worker"}]}]}}
OWN = {
    "metadata": {"annotations": {"a": "prefill"}},
    "spec": {"containers": [{"name": "main", "env": [{"name": "A", "value": "prefill"}]}]},
}


def objects(planned):
    return {(child["kind"], child["metadata"]["name"]) for child in planned.children}


@pytest.fixture
def pods(child):
    """Main container of the workers and of the prefill workers."""

    def of(planned):
        return [
            child(planned, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
            for name in ("smollm-workers", "smollm-prefill")
        ]

    return of


def values(container):
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_prefill_workers_have_objects_of_their_own_and_share_the_account(make_endpoint, make_plan):
    without = objects(make_plan(make_endpoint(replicas=2)))
    found = objects(make_plan(make_endpoint(replicas=2, prefill={"replicas": 2})))
    added = {name for name in found - without if name[0] != "ControllerRevision"}
    kinds = ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")
    assert added == {(kind, "smollm-prefill") for kind in kinds}


def test_the_pods_differ_in_role_arguments_resources_and_labels(make_endpoint, make_plan, child, pods):
    endpoint = make_endpoint(
        engine={"args": ["--seed", "1"]},
        worker={"resources": {"limits": {"cpu": 1}}},
        prefill={"engine": {"args": ["--seed", "2"]}, "resources": {"limits": {"cpu": 4}}},
    )
    planned = make_plan(endpoint)
    worker, prefill = pods(planned)
    assert worker["args"][4:] == ["--disaggregation-mode", "decode", "--seed", "1"]
    assert prefill["args"][4:] == ["--disaggregation-mode", "prefill", "--seed", "1", "--seed", "2"]
    assert (worker["resources"], prefill["resources"]) == ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "4"}})
    for container in (worker, prefill):
        address = values(container)["VLLM_NIXL_SIDE_CHANNEL_HOST"]
        assert address["fieldRef"]["fieldPath"] == "status.podIP"
    different = {"args", "resources"}
    assert {key: worker[key] for key in worker.keys() - different} == {
        key: prefill[key] for key in prefill.keys() - different
    }, "among others the suffix of the Dynamo namespace"
    for kind in ("Deployment", "NetworkPolicy", "Service"):
        obj = child(planned, kind, "smollm-prefill")
        assert obj["metadata"]["labels"][names.LABEL_COMPONENT] == "prefill"
    assert child(planned, "Service", "smollm-prefill")["spec"]["selector"] == endpoint.selector("prefill")
    policy = child(planned, "NetworkPolicy", "smollm-prefill")["spec"]
    assert policy["podSelector"]["matchLabels"] == endpoint.selector("prefill")
    assert policy["ingress"] == child(planned, "NetworkPolicy", "smollm-workers")["spec"]["ingress"]


@pytest.mark.parametrize(("prefill", "expected"), [({}, {"limits": {"cpu": "1"}}), ({"resources": {}}, None)])
def test_resources_default_to_those_of_the_workers(make_endpoint, make_plan, pods, prefill, expected):
    endpoint = make_endpoint(worker={"resources": {"limits": {"cpu": 1}}}, prefill=prefill)
    _, container = pods(make_plan(endpoint))
    assert container.get("resources") == expected


def test_the_pod_template_applies_after_that_of_the_workers(make_endpoint, make_plan, child, pods):
    planned = make_plan(make_endpoint(worker={"podTemplate": MAIN}, prefill={"podTemplate": OWN}))
    assert [values(container)["A"] for container in pods(planned)] == ["worker", "prefill"]
    annotated = child(planned, "Deployment", "smollm-prefill")["spec"]["template"]["metadata"]
    assert annotated["annotations"] == {"a": "prefill"}


def test_both_roles_share_one_namespace_that_changes_with_either(make_endpoint, make_plan, child):
    def suffixes(**spec):
        planned = make_plan(make_endpoint(**spec))
        return {
            child(planned, "Deployment", f"smollm-{name}")["spec"]["template"]["metadata"]["labels"][
                names.LABEL_REVISION
            ]
            for name in ("workers", "prefill")
        }

    found = [
        suffixes(prefill={}),
        suffixes(prefill={"engine": {"args": ["--seed", "1"]}}),
        suffixes(prefill={}, engine={"args": ["--seed", "1"]}),
    ]
    assert [len(each) for each in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3


def test_the_digest_of_a_single_template_is_that_of_earlier_releases():
    """Another digest would replace the workers of every endpoint at its next change."""
    template = {"metadata": {"labels": {}}, "spec": {"containers": []}}
    found = with_namespace_suffix({"worker": template})["worker"]["metadata"]["labels"][names.LABEL_REVISION]
    assert found == digest(template) == "c2216ed9e9"


def test_the_revision_pins_both_templates(make_endpoint, make_plan, make_observed, child):
    first = make_plan(make_endpoint(prefill={}))
    stored = child(first, "ControllerRevision", first.revision.name)["data"]
    assert set(stored) == {"worker", "prefill", "frontend"}
    later = make_plan(make_endpoint(prefill={}), make_observed(first), worker_image="registry.example/w:2")
    assert later.revision.name == first.revision.name
    assert later.revision.upgrade_available


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ({"prefill": {"replicas": 3}}, False),
        ({"prefill": {}, "replicas": 3}, False),
        ({"prefill": {"engine": {"args": ["--seed", "1"]}}}, True),
        ({"prefill": {"resources": {}}}, True),
        ({"prefill": {"podTemplate": OWN}}, True),
        ({}, True),
    ],
)
def test_only_a_change_of_the_templates_is_a_new_revision(
    make_endpoint, make_plan, make_observed, change, restarts
):
    first = make_plan(make_endpoint(prefill={}, worker={"resources": {"limits": {"cpu": 1}}}))
    endpoint = make_endpoint(**{"worker": {"resources": {"limits": {"cpu": 1}}}, **change})
    changed = make_plan(endpoint, make_observed(first))
    assert (changed.revision.name != first.revision.name) is restarts


@pytest.mark.parametrize(
    ("replicas", "prefill", "expected"),
    [(2, 3, (2, 3)), (1, 1, (1, 1)), (0, 3, (0, 0))],
)
def test_prefill_workers_run_only_with_workers(make_endpoint, make_plan, child, replicas, prefill, expected):
    planned = make_plan(make_endpoint(replicas=replicas, prefill={"replicas": prefill}))
    counts = tuple(
        child(planned, "Deployment", f"smollm-{name}")["spec"]["replicas"] for name in ("workers", "prefill")
    )
    assert counts == expected
    budgets = {name for kind, name in objects(planned) if kind == "PodDisruptionBudget"}
    names_of = ("smollm-workers", "smollm-prefill")
    assert budgets == {name for name, count in zip(names_of, expected, strict=True) if count > 1}


def test_replicas_of_a_rejected_spec_apply_to_both_deployments(make_endpoint, make_plan, make_observed):
    observed = make_observed(make_plan(make_endpoint(replicas=2, prefill={"replicas": 2})))
    found = scaling(make_endpoint(replicas=3, prefill={"replicas": 1}), observed)
    assert found.replicas == {"smollm-workers": 3, "smollm-prefill": 1, "smollm-frontend": 1}
    assert [child["metadata"]["name"] for child in found.children] == ["smollm-workers"]
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in found.prune] == [
        ("PodDisruptionBudget", "smollm-prefill")
    ]


def test_a_rejected_spec_creates_no_budget_for_pods_that_do_not_exist(
    make_endpoint, make_plan, make_observed
):
    observed = make_observed(make_plan(make_endpoint()))
    found = scaling(make_endpoint(prefill={"replicas": 2}), observed)
    assert found == Scaling({"smollm-workers": 1, "smollm-frontend": 1}, (), ())


def test_prefill_workers_go_with_the_section(make_endpoint, make_plan, make_observed):
    """Workers of the older revision serve alone until the rollout replaces them."""
    before = make_observed(make_plan(make_endpoint(prefill={})))
    found = make_plan(make_endpoint(), before)
    pruned = {(obj["kind"], obj["metadata"]["name"]) for obj in found.prune}
    expected = {(kind, "smollm-prefill") for kind in ("Deployment", "Service", "NetworkPolicy")}
    assert {each for each in pruned if each[1] == "smollm-prefill"} == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"frontend": {"mode": "None"}}, "prefill: Only a frontend sends requests to prefill workers"),
        ({"frontend": {"routing": {"mode": "KV"}}}, "prefill: frontend.routing.mode KV is not supported"),
        (
            {"model": {"uri": "hf://o/n", "type": "Embedding"}},
            "prefill: A model of type Embedding does not decode",
        ),
        (
            {"prefill": {"engine": {"args": ["--seed", "1", "--disaggregation-mode", "x"]}}},
            "prefill.engine.args: --disaggregation-mode is set by the operator. Remove it: set spec.prefill",
        ),
        (
            {"prefill": {"engine": {"args": ["--load-format", "gms"]}}},
            "prefill.engine.args: --load-format gms is not supported",
        ),
        (
            {"prefill": {"engine": {"args": ["--api-key", "x"]}}},
            "prefill.engine.args: --api-key is read by the server on port 8080",
        ),
        (
            {
                "prefill": {"engine": {"args": ["--router-mode", "kv"]}},
                "frontend": {"routing": {"mode": "Random"}},
            },
            "prefill.engine.args: --router-mode contradicts frontend.routing",
        ),
    ],
)
def test_what_prefill_cannot_do_is_rejected(make_endpoint, make_plan, spec, message):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(**{"prefill": {}, **spec}))
    assert error.value.reason is Reason.INVALID_SPEC
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"spec": {"serviceAccountName": "x"}}, "Use worker.serviceAccountName instead."),
        (
            {"spec": {"containers": [{"name": "main", "env": [{"name": "DYN_ENABLE_RL", "value": "1"}]}]}},
            "In env of the container main, DYN_ENABLE_RL is not supported by the worker",
        ),
        ({"spec": {"containers": [{"name": "main", "args": []}]}}, "The operator sets args"),
    ],
)
def test_a_pod_template_that_conflicts_with_the_operator_is_rejected(
    make_endpoint, make_plan, template, message
):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(prefill={"podTemplate": template}))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert error.value.message.startswith("prefill.podTemplate: ")
    assert message in error.value.message


def test_the_api_server_verifies_the_pods_before_the_first_write(make_endpoint, make_plan, make_observed):
    def verified(planned):
        return [child["metadata"]["name"] for child in planned.verify]

    assert verified(make_plan(make_endpoint(prefill={}))) == []
    assert verified(make_plan(make_endpoint(prefill={"podTemplate": OWN}))) == ["smollm-prefill"]
    observed = make_observed(make_plan(make_endpoint(prefill={})))
    changed = make_plan(make_endpoint(prefill={"engine": {"args": ["--seed", "1"]}}), observed)
    assert verified(changed) == ["smollm-workers", "smollm-prefill"], "both have another Dynamo namespace"
    assert verified(make_plan(make_endpoint(prefill={}), observed)) == []


def test_prefill_workers_get_new_settings_immediately(
    make_endpoint, make_plan, make_observed, make_worker, make_prefill
):
    endpoint = make_endpoint(prefill={}, healthCheck={"level": "Standard"})
    pods = [make_worker("w-1", settings=make_endpoint()), make_prefill("p-1", settings=make_endpoint())]
    found = make_plan(endpoint, make_observed(make_plan(endpoint), pods=pods)).refresh
    assert {"w-1", "p-1"} <= set(found)


def test_a_null_that_kubectl_dropped_is_reported():
    manifest = {"spec": {"prefill": {"podTemplate": {"spec": {"nodeSelector": None}}}}}
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(manifest)}
    (message,) = find_dropped_nulls(annotations, {"prefill": {"podTemplate": {"spec": {}}}})
    assert message.startswith("prefill.podTemplate: kubectl apply does not send null, so spec.nodeSelector")
