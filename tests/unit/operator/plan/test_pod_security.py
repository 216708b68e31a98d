"""The user of the pods, and the token with which they discover each other."""

import json

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.plan.pods.dropped_nulls import find_dropped_nulls

TOKEN_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
PARTS = ("worker", "frontend")


@pytest.fixture
def pods(child):
    def find(planned):
        return [
            child(planned, "Deployment", f"smollm-{name}")["spec"]["template"]["spec"]
            for name in ("workers", "frontend")
        ]

    return find


def test_pods_mount_the_token_regardless_of_their_account(make_endpoint, make_plan, pods):
    named = make_endpoint(worker={"serviceAccountName": "without-token"})
    for endpoint in (make_endpoint(), named):
        assert [pod["automountServiceAccountToken"] for pod in pods(make_plan(endpoint))] == [True, True]


def own_token(path=TOKEN_DIR, automount=False):
    return {
        "spec": {
            "automountServiceAccountToken": automount,
            "containers": [{"name": "main", "volumeMounts": [{"name": "token", "mountPath": path}]}],
            "volumes": [
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
            ],
        }
    }


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "template",
    [
        {"spec": {"automountServiceAccountToken": False}},
        {"spec": {"automountServiceAccountToken": None}},
        own_token("/elsewhere"),
        own_token("token"),
        own_token(f"{TOKEN_DIR}/token"),
    ],
    ids=["false", "null", "elsewhere", "relative", "below"],
)
def test_a_pod_template_without_token_is_rejected(make_endpoint, make_plan, part, template):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(**{part: {"podTemplate": template}}))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    message = error.value.message
    assert message.startswith(f"{part}.podTemplate: spec.automountServiceAccountToken must be true")
    assert TOKEN_DIR in message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("path", [TOKEN_DIR, f"{TOKEN_DIR}/", "/var/run/secrets"])
def test_a_pod_template_may_mount_its_own_token(make_endpoint, make_plan, pods, part, path):
    found = pods(make_plan(make_endpoint(**{part: {"podTemplate": own_token(path)}})))
    assert found[PARTS.index(part)]["automountServiceAccountToken"] is False


def test_pods_set_a_user_unless_the_cluster_assigns_one(make_endpoint, make_plan, pods):
    for pod in pods(make_plan(make_endpoint())):
        ids = {name: pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
        # NVIDIA's image lets user 1000 and group 0 write its caches. Volumes keep their group.
        assert ids == {"runAsUser": 1000, "runAsGroup": 0, "fsGroup": 1000}
    for pod in pods(make_plan(make_endpoint(), fixed_user=False)):
        # The fields that OpenShift's restricted-v2 accepts; it assigns the others.
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (main,) = pod["containers"]
        assert main["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "security",
    [
        {"$patch": "replace", "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        {"$retainKeys": ["runAsNonRoot", "seccompProfile"]},
        {"runAsUser": None, "runAsGroup": None, "fsGroup": None, "fsGroupChangePolicy": None},
    ],
    ids=["replace", "retain", "null"],
)
def test_a_pod_template_may_remove_the_user(make_endpoint, make_plan, pods, part, security):
    template = {"spec": {"securityContext": security}}
    pod = pods(make_plan(make_endpoint(**{part: {"podTemplate": template}})))[PARTS.index(part)]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def applied(template):
    spec = {"worker": {"podTemplate": template}, "frontend": None}
    return {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": spec})}


SECURITY = {"spec": {"securityContext": {"runAsUser": None, "fsGroup": None, "runAsGroup": None, "x": None}}}
ENV = {"spec": {"containers": [{"name": "main", "resources": None}]}}


@pytest.mark.parametrize(
    ("annotations", "live", "message"),
    [
        (applied(SECURITY), {"spec": {"securityContext": {"runAsUser": None}}}, "fsGroup, "),
        (applied(SECURITY), {"spec": {"securityContext": {}}}, "spec.securityContext.runAsUser, "),
        (applied(SECURITY), {}, "and 1 more has no effect"),
        (applied(ENV), {"spec": {"containers": [{"name": "main"}]}}, "spec.containers[0].resources has no"),
        (applied(ENV), ENV, ""),
        (applied({"spec": {"nodeSelector": {"a": "b"}}}), {}, ""),
        ({"kubectl.kubernetes.io/last-applied-configuration": "["}, {}, ""),
        ({"kubectl.kubernetes.io/last-applied-configuration": "[]"}, {}, ""),
        ({}, SECURITY, ""),
    ],
)
def test_a_null_that_kubectl_apply_did_not_send_is_reported(annotations, live, message):
    found = find_dropped_nulls(annotations, {"worker": {"podTemplate": live}})
    assert len(found) == bool(message)
    for text in found:
        assert message in text
        assert text.startswith("worker.podTemplate: kubectl apply does not send null, so ")
        assert text.endswith("Use $patch: delete, $patch: replace or $retainKeys.")


def test_chart_options_change_no_pinned_template(make_endpoint, make_plan, make_observed, pods):
    first = make_plan(make_endpoint())
    second = make_plan(make_endpoint(), make_observed(first), fixed_user=False)
    assert pods(second) == pods(first)
    assert second.revision.upgrade_available
    third = make_plan(make_endpoint(rollout="1"), make_observed(second), fixed_user=False)
    assert all("runAsUser" not in pod["securityContext"] for pod in pods(third))
