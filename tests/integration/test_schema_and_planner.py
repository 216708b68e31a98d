"""Every spec that the schema accepts has a plan, and the API server accepts the planned children."""

import json
import re
import shlex
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import user_docs
from tests.user_docs import parts_of_specs
from vllmendpoint_api import OWNED_ENGINE_ARGS, VLLMEndpointSpec, custom_resource_definition
from vllmendpoint_operator.kube.kinds import by_name
from vllmendpoint_operator.observe.snapshot import ConfigMapContent, Endpoint, Observed
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.planner import plan

NAMES = st.sampled_from(["a", "with-dash", "with.dot", "x" * 63])
QUANTITIES = st.sampled_from(
    ["1", "500m", "1.5Gi", "+1", ".5", "1e3", "2E2", "1e.5", "1e99", "0", 0, 7, "9223372036854775807"]
)
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"]), max_size=20)
SHARES = st.one_of(st.integers(0, 5), st.sampled_from(["0%", "1%", "25%", "100%"]))


def abbreviations(name):
    """Prefixes of an argument, which vLLM expands, with hyphens or underscores, with or without a value."""
    return st.builds(
        lambda length, hyphen, value: "--" + name[2:length].replace("-", hyphen) + value,
        st.integers(2, len(name)),
        st.sampled_from("-_"),
        st.sampled_from(["", "=x"]),
    )


ARGUMENTS = st.one_of(
    TEXT,
    TEXT.map(lambda text: f"--{text}"),
    st.sampled_from(sorted(OWNED_ENGINE_ARGS)).flatmap(abbreviations),
)


def fields(**kinds):
    """An object with any subset of these fields."""
    return st.fixed_dictionaries({}, optional=kinds)


def resources():
    """All resources but huge pages: only the API server compares their size with the quantity."""
    names = st.sampled_from(["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "gpu"])
    some = st.dictionaries(names, QUANTITIES, max_size=3)
    return fields(limits=some, requests=some)


def pod_template():
    main = fields(
        env=st.just([{"name": "FROM_TEMPLATE", "value": "1"}]),
        volumeMounts=st.just([{"name": "more", "mountPath": "/more"}]),
        resources=st.just({"limits": {"example.com/nic": 1}}),
        imagePullPolicy=st.sampled_from(["Always", "Never"]),
    ).map(lambda found: {"name": "main", **found})
    pod = fields(
        nodeSelector=st.dictionaries(NAMES, st.just("v"), max_size=2),
        tolerations=st.just([{"operator": "Exists"}]),
        priorityClassName=NAMES,
        runtimeClassName=st.just("nvidia"),
        terminationGracePeriodSeconds=st.sampled_from([0, 300]),
        containers=main.map(lambda one: [one]),
        initContainers=st.just([{"name": "first", "image": "x"}]),
    )

    def complete(spec):
        mounts = json.dumps(spec)
        return {**spec, "volumes": [{"name": "more", "emptyDir": {}}]} if '"more"' in mounts else spec

    labels = st.dictionaries(NAMES, st.just("v"), max_size=2)
    return fields(metadata=fields(labels=labels, annotations=labels), spec=pod.map(complete))


MODEL_URI = {"uri": "hf://o/n"}
MODEL = st.builds(
    lambda uri, more: {"uri": uri, **more},
    st.sampled_from(
        ["hf://o/n", "hf://a.b/c_d-e", "s3://bucket", "s3://b.c/d/", "pvc://claim", "pvc://c.d/deep/er/"]
        + ["file:///m", "file:///a b/c"]
    ),
    fields(
        name=st.sampled_from(["m", "o/n:v1", "A" * 128]),
        revision=st.sampled_from(["main", "refs/pr/1"]),
        type=st.sampled_from(["Chat", "Completion", "Embedding"]),
        tokenSecretRef=fields(key=NAMES).map(lambda found: {"name": "s", **found}),
        artifactsUri=st.sampled_from(["s3://bucket", "s3://my.bucket/a/b/"]),
    ),
)
REFERENCE = st.sampled_from([{"name": "map", "key": "k"}])
SPEC = st.builds(
    lambda model, more: {"model": model, **more},
    MODEL,
    fields(
        replicas=st.integers(0, 10_000),
        engine=fields(
            args=st.lists(ARGUMENTS, max_size=3),
            config=st.one_of(
                st.dictionaries(TEXT, TEXT, max_size=3).map(lambda found: {"inline": found}),
                REFERENCE.map(lambda found: {"configMapKeyRef": found}),
            ),
        ),
        prefill=fields(
            replicas=st.integers(1, 10_000),
            resources=resources(),
            engine=fields(args=st.lists(ARGUMENTS, max_size=3)),
            podTemplate=pod_template(),
        ),
        worker=fields(
            image=st.sampled_from(["i", "r.example:5000/a/b@sha256:" + "0" * 64]),
            resources=resources(),
            env=st.lists(
                st.sampled_from(
                    [
                        {"name": "A"},
                        {"name": "HF_HOME", "value": "/x"},
                        {"name": "a.b-c", "value": "$(POD_NAME)"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                        {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                        {"name": "N", "valueFrom": {}},
                        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "c", "key": ""}}},
                        {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                        {
                            "name": "D",
                            "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1m"}},
                        },
                        {"name": "HF_TOKEN", "value": "x"},
                        {"name": "SAGEMAKER_MODEL_PATH", "value": "/mine"},
                        {"name": "SAGEMAKER_MODEL_PATH", "value": "mine"},
                        {"name": "SM_VLLM_MAX_MODEL_LEN", "value": "9"},
                        {"name": "SM_VLLM_Revi", "value": "9"},
                        {"name": "SM_VLLM_", "value": "9"},
                    ]
                ),
                unique_by=lambda item: item["name"],
                max_size=5,
            ),
            envFrom=st.lists(
                st.sampled_from(
                    [
                        {"secretRef": {"name": "s"}},
                        {"prefix": "P_", "configMapRef": {"name": "c"}},
                        {"secretRef": {"name": "s"}, "configMapRef": {"name": "c"}},
                        {"prefix": "9", "secretRef": {"name": "s", "optional": True}},
                        {},
                    ]
                ),
                max_size=2,
            ),
            imagePullSecrets=st.lists(NAMES, unique=True, max_size=2).map(
                lambda found: [{"name": name} for name in found]
            ),
            serviceAccountName=NAMES,
            sharedMemorySize=QUANTITIES,
            startupTimeoutSeconds=st.sampled_from([10, 11, 86_400]),
            podTemplate=pod_template(),
        ),
        cache=st.one_of(
            NAMES.map(lambda name: {"persistentVolumeClaim": {"claimName": name}}),
            fields(sizeLimit=QUANTITIES).map(lambda found: {"emptyDir": found}),
            st.builds(
                lambda size, more: {"volumeClaimTemplate": {"size": size, **more}},
                QUANTITIES,
                fields(
                    storageClassName=st.sampled_from(["", "fast"]),
                    accessModes=st.lists(
                        st.sampled_from(["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]),
                        min_size=1,
                        unique=True,
                    ),
                ),
            ),
            st.just({}),
        ),
        healthCheck=fields(
            mode=st.sampled_from(["Enforce", "Observe", "Disabled"]),
            level=st.sampled_from(["Minimal", "Standard", "Comprehensive"]),
            payload=st.just({"prompt": "1"}),
            expect=st.just({"regex": "."}),
            periodSeconds=st.integers(1, 86_400),
            timeoutSeconds=st.integers(1, 3_600),
            failureThreshold=st.integers(1, 100),
            successThreshold=st.integers(1, 100),
            restartAfterSeconds=st.integers(0, 86_400),
        ),
        handlers=fields(
            script=st.one_of(
                TEXT.filter(bool).map(lambda text: {"inline": text}),
                REFERENCE.map(lambda found: {"configMapKeyRef": found}),
            ),
            ping=st.just("model:f"),
            invocations=st.just("/opt/ml/model/m.py:g"),
        ),
        frontend=st.one_of(
            fields(mode=st.just("None"), replicas=st.integers(1, 100)),
            fields(
                mode=st.just("Managed"),
                image=st.sampled_from(["i", "r.example:5000/a/b@sha256:" + "0" * 64]),
                replicas=st.integers(1, 100),
                migrationLimit=st.integers(0, 100),
                routing=fields(
                    mode=st.sampled_from(["RoundRobin", "Random", "LeastLoaded", "KV"]),
                    sessionAffinitySeconds=st.integers(1, 31_536_000),
                ),
                resources=resources(),
                podTemplate=pod_template(),
            ),
        ),
        strategy=fields(rollingUpdate=fields(maxUnavailable=SHARES, maxSurge=SHARES)),
        paused=st.booleans(),
        restartedAt=st.just("2026-01-31T13:00:00+01:00"),
    ),
)


def call(api, method, path, body, as_="json"):
    """The object, or the message with which the API server rejects it."""
    try:
        return api.call(method, path, body, as_=as_)
    except LookupError as error:
        return str(error)


def is_accepted(api, spec, accepted_children):
    """Whether the schema accepts the spec. Asserts that the API server then accepts each planned child.

    Children in ``accepted_children`` are not checked again.
    """
    name, owner = "e" * 40, "00000000-0000-0000-0000-000000000001"
    kind = {"apiVersion": "serving.vllmendpoint.dev/v1alpha1", "kind": "VLLMEndpoint"}
    body = {**kind, "metadata": {"name": name}, "spec": spec}
    path = api.path("VLLMEndpoint", "default")
    created = call(api, "POST", f"{path}?dryRun=All&fieldValidation=Strict", body)
    if isinstance(created, str):
        assert " is invalid: " in created
        return False
    parsed = VLLMEndpointSpec.model_validate(created["spec"])
    endpoint = Endpoint("default", name, owner, 1, parsed, None)
    maps = {
        "map": ConfigMapContent({"k": "seed: 1\n"}),
        "handlers": ConfigMapContent({"model.py": ""}),
    }
    planned = plan(
        endpoint, Observed(now=datetime.now(UTC), config_maps=maps), Options("worker:1", "frontend:1")
    )
    for child in planned.children:
        if child in accepted_children:
            continue
        accepted_children.append(child)
        path = by_name(child["kind"]).path("default", child["metadata"]["name"])
        applied = call(api, "PATCH", f"{path}?fieldManager=test&force=true&dryRun=All", child, as_="apply")
        assert not isinstance(applied, str), f"{applied}\nof the spec {json.dumps(spec)}"
    return True


@pytest.mark.timeout(300)
def test_the_children_of_every_accepted_spec_are_accepted(api):
    children, accepted = [], set()

    @settings(
        max_examples=450,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(SPEC)
    def every(spec):
        if is_accepted(api, spec, children):
            accepted.update((name, inner) for name, value in spec.items() for inner in parts(value))

    every()
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    expected = {(name, inner) for name, value in schema.items() for inner in value.get("properties", [""])}
    assert len(expected - accepted) <= 2, f"no accepted example has {expected - accepted}"


def parts(value):
    return list(value) if isinstance(value, dict) else [""]


PARTS = parts_of_specs(user_docs.TEXT)
COMMANDS = re.findall(r"^kubectl (create .*)$", user_docs.TEXT, re.MULTILINE)


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_every_documented_part_of_a_spec_is_accepted(api, part):
    assert is_accepted(api, {"model": MODEL_URI, **part}, [])


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(text.split()[:4]) for text in COMMANDS])
def test_every_documented_command_creates_an_object_that_an_example_names(api, tmp_path, command):
    (tmp_path / "ca.crt").write_text("a certificate")
    words = shlex.split(command.replace("--from-file=", f"--from-file={tmp_path}/"))
    created = api.kubectl(*words, "--dry-run=server", "-o", "name").strip()
    assert any(f'"name": "{created.partition("/")[2]}"' in json.dumps(part) for part in PARTS)
