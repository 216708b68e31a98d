"""The remedy in messages about rejected pods, for the errors of Kubernetes' admission plugins."""

import msgspec
import pytest

from vllmendpoint_operator.kube.object_meta import keep_pod_template
from vllmendpoint_operator.observe.snapshot import replica_failure
from vllmendpoint_operator.status.diagnosis.rejected_pods import remedy

FORBIDDEN = 'pods "e-workers-7d-x" is forbidden: '
RAISE = "Raise the ResourceQuota, or"
CASES = {
    "no request under a quota": (
        "failed quota: q: must specify requests.cpu for: main",
        "The ResourceQuota q requires these fields: set {c}.resources.requests.cpu.",
    ),
    "several, of several containers": (
        "failed quota: q: must specify cpu for: main; limits.memory for: main,proxy",
        (
            "The ResourceQuota q requires these fields: set {c}.resources.requests.cpu and "
            "{c}.resources.limits.memory and resources.limits.memory of the container proxy in "
            "{c}.podTemplate."
        ),
    ),
    "an API server before 1.25": (
        "failed quota: q: must specify limits.cpu,memory",
        (
            "The ResourceQuota q requires these fields: set {c}.resources.limits.cpu and "
            "{c}.resources.requests.memory."
        ),
    ),
    "cpu": (
        "exceeded quota: q, requested: requests.cpu=4, used: requests.cpu=0, limited: requests.cpu=1",
        RAISE + " lower {c}.resources.requests.cpu.",
    ),
    "cpu by its old name, and memory": (
        "exceeded quota: q, requested: cpu=4,limits.memory=8Gi, used: cpu=0, limited: cpu=1",
        RAISE + " lower {c}.resources.requests.cpu or {c}.resources.limits.memory.",
    ),
    "ephemeral storage": (
        "exceeded quota: q, requested: limits.ephemeral-storage=9Gi, used: x, limited: y",
        RAISE + " lower {c}.resources.limits.ephemeral-storage.",
    ),
    "a device": (
        "exceeded quota: q, requested: requests.nvidia.com/gpu=8, used: x, limited: y",
        RAISE + ' lower {c}.resources.limits["nvidia.com/gpu"].',
    ),
    "a quota without amounts": ("exceeded quota: q", RAISE + " request less."),
    "too small for the LimitRange": (
        "minimum cpu usage per Container is 100m, but request is 50m",
        "The namespace has a LimitRange: set {c}.resources.requests.cpu to at least 100m.",
    ),
    "no values where the LimitRange requires them": (
        (
            "[minimum memory usage per Pod is 1.5Gi.  No request is specified, maximum cpu usage per "
            "Container is 2.  No limit is specified]"
        ),
        (
            "The namespace has a LimitRange: set {c}.resources.requests.memory to at least 1.5Gi and "
            "{c}.resources.limits.cpu to at most 2."
        ),
    ),
    "too large for the LimitRange": (
        "maximum memory usage per Pod is 8Gi, but limit is 34359738368",
        "The namespace has a LimitRange: set {c}.resources.limits.memory to at most 8Gi.",
    ),
    "a ratio": (
        "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
        (
            "The namespace has a LimitRange: set {c}.resources.limits.cpu to at most 2 times "
            "{c}.resources.requests.cpu."
        ),
    ),
    "Pod Security": (
        'violates PodSecurity "restricted:latest": privileged',
        "Change {c}.podTemplate, or lower the Pod Security level of the namespace.",
    ),
    "a priority class": (
        "no PriorityClass with name high was found",
        "Change priorityClassName in {c}.podTemplate.spec.",
    ),
    "a scope of a quota": (
        "insufficient quota to match these scopes: [{PriorityClass In [high]}]",
        "Create a ResourceQuota with a matching scope, or change {c}.podTemplate.spec.priorityClassName.",
    ),
    "another scope of a quota": (
        "insufficient quota to match these scopes: [{BestEffort Exists []}]",
        "Create a ResourceQuota with a matching scope, or change {c}.resources.",
    ),
    "a resource that needs a quota": (
        "insufficient quota to consume: requests.nvidia.com/gpu,limits.cpu",
        (
            'Create a ResourceQuota that allows {c}.resources.limits["nvidia.com/gpu"] and '
            "{c}.resources.limits.cpu, or remove these fields."
        ),
    ),
    "more requested than the LimitRange allows": (
        "maximum cpu usage per Pod is 2.  No request is specified",
        "The namespace has a LimitRange: set {c}.resources.requests.cpu to at most 2.",
    ),
    "a whitelist of node selectors": (
        "pod node label selector labels conflict with its namespace whitelist",
        "Change nodeSelector in {c}.podTemplate.spec.",
    ),
    "a runtime class": (
        'pod rejected: RuntimeClass "gvisor" not found',
        "Change runtimeClassName in {c}.podTemplate.spec.",
    ),
    "a node selector": (
        "pod node label selector conflicts with its namespace node label selector",
        "Change nodeSelector in {c}.podTemplate.spec.",
    ),
    "tolerations": (
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its whitelist",
        "Change tolerations in {c}.podTemplate.spec.",
    ),
    "a default limit below the request": (
        'Pod "x" is invalid: spec.containers[0].resources.requests: Invalid value: "2": must be less than 1',
        "Change {c}.resources.requests.",
    ),
    "the same of another container": (
        'Pod "x" is invalid: spec.containers[1].resources.limits: Invalid value: "2": no',
        "Change resources.limits of the container proxy in {c}.podTemplate.",
    ),
    "the same of an init container": (
        'Pod "x" is invalid: spec.initContainers[0].resources.limits: Invalid value: "2": no',
        "Change resources.limits of an init container in {c}.podTemplate.",
    ),
    "a webhook": (
        'admission webhook "w.example.com" denied the request: no label cost-center',
        "Change {c}.podTemplate to satisfy the policy, or change the policy. Kubernetes retries.",
    ),
    "a policy": (
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
        "Change {c}.podTemplate to satisfy the policy, or change the policy. Kubernetes retries.",
    ),
    "an unknown error": ("the moon is full", "Kubernetes retries."),
}


@pytest.mark.parametrize("component", ["worker", "prefill", "frontend"])
@pytest.mark.parametrize("case", CASES)
def test_the_remedy_names_the_field(case, component):
    message, expected = CASES[case]
    containers = ["main", "proxy"] if "other container" in case else ["main"]
    assert remedy(FORBIDDEN + message, component, containers) == expected.replace("{c}", component)


@pytest.mark.parametrize(
    ("component", "fields"),
    [
        ("worker", "replicas or strategy.rollingUpdate.maxSurge"),
        ("prefill", "prefill.replicas or strategy.rollingUpdate.maxSurge"),
        ("frontend", "frontend.replicas"),
    ],
)
@pytest.mark.parametrize("resource", ["pods", "count/pods"])
def test_the_remedy_for_a_quota_of_pods_names_the_replicas(component, fields, resource):
    message = (
        f"{FORBIDDEN}exceeded quota: q, requested: {resource}=1, used: {resource}=1, limited: {resource}=1"
    )
    assert remedy(message, component, ["main", "proxy"]) == f"{RAISE} lower {fields}."


def test_the_remedy_names_the_other_containers_too():
    message = FORBIDDEN + "exceeded quota: q, requested: cpu=4, used: cpu=0, limited: cpu=1"
    assert remedy(message, "worker", ["proxy", "main", "log"]).endswith(
        " lower worker.resources.requests.cpu, or the resources of the containers proxy, log in "
        "worker.podTemplate."
    )
    message = FORBIDDEN + "minimum cpu usage per Container is 100m, but request is 50m"
    assert remedy(message, "frontend", ["main", "proxy"]).endswith(
        ": set frontend.resources.requests.cpu to at least 100m; for the container proxy, set it in "
        "frontend.podTemplate."
    )


def test_the_remedy_for_a_missing_service_account_depends_on_the_component():
    message = FORBIDDEN + 'error looking up service account t/s: serviceaccount "s" not found'
    expected = "Create the ServiceAccount s, or set worker.serviceAccountName to another one."
    assert remedy(message, "worker") == remedy(message, "prefill") == expected
    assert remedy(message, "frontend") == "Kubernetes retries."


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            {"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "no"}]},
            "no",
        ),
        ({"conditions": [{"type": "ReplicaFailure", "status": "False", "message": "no"}]}, ""),
        ({"conditions": [{"type": "ReplicaFailure", "status": "True"}]}, "its ReplicaSet reports no reason"),
        ({"replicas": 1}, ""),
        (None, ""),
    ],
)
def test_the_cache_keeps_the_failure_of_a_replica_set(status, expected):
    fields = {
        "metadata": {"name": "r", "namespace": "n", "uid": "u"},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "main"}]}}},
        **({} if status is None else {"status": status}),
    }
    raw = {name: msgspec.Raw(msgspec.json.encode(part)) for name, part in fields.items()}
    assert replica_failure(msgspec.json.decode(keep_pod_template(raw))) == expected
