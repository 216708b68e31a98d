"""Where each field of the spec is rendered, and which specs the planner rejects."""

import json

import pytest

from tests.nested import walk
from vllmendpoint_api import Reason, script_digest
from vllmendpoint_operator.components import invocations_url, url
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Observed, object_key

MAIN = "spec.template.spec.containers.0"
CASES = [
    (
        {"model": {"uri": "hf://o/n"}},
        "workers",
        f"{MAIN}.args",
        ["--served-model-name", "smollm", "--model", "o/n"],
    ),
    ({"model": {"uri": "file:///m"}}, "workers", f"{MAIN}.args.3", "/m"),
    ({"model": {"uri": "pvc://c/p/q"}}, "workers", f"{MAIN}.args.3", "/var/lib/vllmendpoint/models/c/p/q"),
    (
        {"model": {"uri": "pvc://c/p/q"}},
        "workers",
        "spec.template.spec.volumes.[name=model].persistentVolumeClaim",
        {"claimName": "c", "readOnly": True},
    ),
    ({"model": {"uri": "hf://o/n", "name": "x"}}, "workers", f"{MAIN}.args.1", "x"),
    (
        {"model": {"uri": "hf://o/n", "type": "Chat"}},
        "workers",
        f"{MAIN}.env.[name=VLLMENDPOINT_MODEL_TYPE].value",
        "Chat",
    ),
    (
        {"model": {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf", "key": "k"}}},
        "workers",
        f"{MAIN}.env.[name=HF_TOKEN]",
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "k"}}},
    ),
    (
        {"model": {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf"}}},
        "workers",
        f"{MAIN}.env.[name=HF_TOKEN].valueFrom.secretKeyRef.key",
        "token",
    ),
    ({"engine": {"args": ["--seed", "1"]}}, "workers", f"{MAIN}.args.5", "1"),
    ({"replicas": 3}, "workers", "spec.replicas", 3),
    ({"worker": {"image": "x:2"}}, "workers", f"{MAIN}.image", "x:2"),
    ({"worker": {"image": "x:2"}}, "frontend", f"{MAIN}.image", "x:2"),
    ({}, "workers", f"{MAIN}.image", "registry.example/worker:1"),
    (
        {"worker": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        "workers",
        f"{MAIN}.resources",
        {"limits": {"nvidia.com/gpu": "1"}},
    ),
    ({"worker": {"env": [{"name": "A", "value": "b"}]}}, "workers", f"{MAIN}.env.[name=A].value", "b"),
    (
        {"worker": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        "workers",
        f"{MAIN}.env.[name=A].valueFrom.secretKeyRef.key",
        "k",
    ),
    (
        {"worker": {"envFrom": [{"secretRef": {"name": "s"}}]}},
        "workers",
        f"{MAIN}.envFrom.0.secretRef.name",
        "s",
    ),
    (
        {"worker": {"imagePullSecrets": [{"name": "s"}]}},
        "workers",
        "spec.template.spec.imagePullSecrets",
        [{"name": "s"}],
    ),
    (
        {"worker": {"imagePullSecrets": [{"name": "s"}]}},
        "frontend",
        "spec.template.spec.imagePullSecrets",
        [{"name": "s"}],
    ),
    (
        {"worker": {"sharedMemorySize": "1Gi"}},
        "workers",
        "spec.template.spec.volumes.[name=shm].emptyDir.sizeLimit",
        "1Gi",
    ),
    ({"worker": {"startupTimeoutSeconds": 101}}, "workers", f"{MAIN}.startupProbe.failureThreshold", 21),
    (
        {"worker": {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}},
        "workers",
        "spec.template.spec.nodeSelector",
        {"a": "b"},
    ),
    (
        {"cache": {"persistentVolumeClaim": {"claimName": "c"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].persistentVolumeClaim.claimName",
        "c",
    ),
    (
        {"cache": {"emptyDir": {"sizeLimit": "9Gi"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].emptyDir.sizeLimit",
        "9Gi",
    ),
    (
        {"cache": {"volumeClaimTemplate": {"size": "9Gi"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].persistentVolumeClaim",
        {"claimName": "smollm-cache"},
    ),
    ({}, "workers", "spec.template.spec.volumes.[name=cache].emptyDir", {}),
    ({"frontend": {"replicas": 2}}, "frontend", "spec.replicas", 2),
    (
        {"frontend": {"resources": {"requests": {"cpu": 2}}}},
        "frontend",
        f"{MAIN}.resources",
        {"requests": {"cpu": "2"}},
    ),
    (
        {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}},
        "frontend",
        "spec.template.spec.priorityClassName",
        "p",
    ),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 2}}},
        "workers",
        "spec.strategy.rollingUpdate",
        {"maxUnavailable": "25%", "maxSurge": 2},
    ),
]


@pytest.mark.parametrize(("spec", "deployment", "path", "value"), CASES)
def test_every_field_is_rendered_in_its_place(make_endpoint, make_plan, child, spec, deployment, path, value):
    planned = make_plan(make_endpoint(**spec))
    assert walk(child(planned, "Deployment", f"smollm-{deployment}"), path) == value


def test_the_health_check_changes_only_the_settings(make_endpoint, make_plan, child):
    check = {"level": "Standard", "periodSeconds": 7, "mode": "Observe"}
    planned = make_plan(make_endpoint(healthCheck=check))
    text = child(planned, "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert json.loads(text) == {"healthCheck": check, "hash": planned.settings.hash}
    assert "Standard" not in json.dumps(child(planned, "Deployment", "smollm-workers"))


def test_settings_contain_only_fields_that_the_user_set(make_endpoint, make_plan, child):
    text = child(make_plan(make_endpoint()), "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert json.loads(text)["healthCheck"] == {}, (
        "a default would override the environment and the config file"
    )


def test_settings_are_readable_and_deterministic(make_endpoint, make_plan, child):
    payload = {"prompt": "héé \u2028 \U0001f642", "b": [], "a": {"y": 1.5, "x": 10**18}}
    planned = make_plan(make_endpoint(healthCheck={"payload": payload}))
    text = child(planned, "ConfigMap", "smollm-settings")["data"]["settings.json"]
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"
    assert json.loads(text)["healthCheck"]["payload"] == payload


def test_inline_config_is_an_immutable_config_map_named_by_its_digest(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(engine={"config": {"inline": {"max-model-len": 512}}}))
    volume = walk(
        child(planned, "Deployment", "smollm-workers"),
        "spec.template.spec.volumes.[name=engine-config].configMap.name",
    )
    config = child(planned, "ConfigMap", volume)
    assert config["immutable"]
    assert config["data"] == {"config.yaml": "max-model-len: 512\n"}
    other = make_plan(make_endpoint(engine={"config": {"inline": {"max-model-len": 513}}}))
    assert volume not in [c["metadata"]["name"] for c in other.children]


def test_every_child_has_owner_and_namespace(make_endpoint, make_plan):
    planned = make_plan(make_endpoint(engine={"config": {"inline": {"a": 1}}}))
    for obj in planned.children:
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("VLLMEndpoint", "uid-1", True)
        assert obj["metadata"]["namespace"] == "team-a"
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "vllmendpoint-operator"


def test_the_revision_is_applied_first_and_deployments_last(make_endpoint, make_plan):
    kinds = [obj["kind"] for obj in make_plan(make_endpoint()).children]
    assert kinds[0] == "ControllerRevision", "it pins the templates before they are applied"
    assert kinds[-2:] == ["Deployment", "Deployment"]


def test_without_a_frontend_the_url_is_that_of_the_workers(make_endpoint, make_plan):
    endpoint = make_endpoint(frontend={"mode": "None"})
    kinds = {(c["kind"], c["metadata"]["name"]) for c in make_plan(endpoint).children}
    assert not [name for _, name in kinds if "frontend" in name]
    assert ("Service", "smollm") not in kinds
    assert url(endpoint) == "http://smollm-workers.team-a.svc:8080/v1"
    assert url(make_endpoint()) == "http://smollm.team-a.svc:8000/v1"
    assert invocations_url(endpoint) == "http://smollm-workers.team-a.svc:8080/invocations"


def test_only_pods_of_the_endpoint_may_connect_to_dynamo_ports(make_endpoint, make_plan, child):
    policy = child(make_plan(make_endpoint()), "NetworkPolicy", "smollm-workers")
    opened = {}
    for rule in policy["spec"]["ingress"]:
        for port in rule["ports"]:
            opened[port["port"]] = rule.get("from")
    assert opened[8080] is None
    peers = {"app.kubernetes.io/name": "vllmendpoint", "app.kubernetes.io/instance": "smollm"}
    assert opened[9090] == opened[9092] == [{"podSelector": {"matchLabels": peers}}]
    (operator,) = opened[9091]
    assert operator["podSelector"]["matchLabels"] == {"app": "operator"}
    assert operator["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "vllmendpoint-system"
    }


def test_only_the_operator_may_connect_to_the_report_port_of_a_frontend(make_endpoint, make_plan, child):
    ingress = child(make_plan(make_endpoint()), "NetworkPolicy", "smollm-frontend")["spec"]["ingress"]
    rules = [(rule.get("from"), port) for rule in ingress for port in rule["ports"]]
    ((sources, _),) = [
        (sources, port)
        for sources, port in rules
        if port["port"] <= 9091 <= port.get("endPort", port["port"])
    ]
    workers = child(make_plan(make_endpoint()), "NetworkPolicy", "smollm-workers")["spec"]["ingress"]
    assert sources == next(rule["from"] for rule in workers if rule["ports"][0]["port"] == 9091)
    assert [port["port"] for sources, port in rules if sources is None] == [8000]


def test_labels_stay_within_63_characters_in_the_longest_namespace(make_endpoint, make_plan):
    planned = make_plan(make_endpoint(namespace="n" * 63, name="e" * 40))
    texts = [obj["metadata"]["labels"] for obj in planned.children]
    texts += [
        obj["spec"]["template"]["metadata"]["labels"]
        for obj in planned.children
        if obj["kind"] == "Deployment"
    ]
    assert max(len(value) for labels in texts for value in labels.values()) <= 63
    names = [obj["metadata"]["name"] for obj in planned.children]
    assert max(map(len, names)) <= 63


def test_dynamo_namespaces_of_two_endpoints_differ(make_endpoint, make_plan, child):
    def namespace(**where: str) -> str:
        deployment = child(make_plan(make_endpoint(**where)), "Deployment", f"{where['name']}-workers")
        return walk(deployment, f"{MAIN}.env.[name=DYN_NAMESPACE].value")

    long = "n" * 63
    assert namespace(namespace="a", name="b") == "a-b_"
    assert namespace(namespace=long, name="e" * 39 + "a") != namespace(namespace=long, name="e" * 39 + "b")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model", "--model is set by the operator. Remove it: set spec.model.uri instead."),
        ("--model=x", "--model is set by the operator"),
        ("--served-model-name", "set spec.model.name instead"),
        ("--served_model_name=x", "--served-model-name is set by the operator"),
        ("--served-model", "--served-model"),
        ("--disaggregation_mode", "not supported yet"),
        ("--health-check-payload={}", "spec.healthCheck.payload"),
        ("--config=x.yaml", "spec.engine.config"),
        ("--nnodes", "multi-node workers are not supported yet"),
        ("--namespace", "assigns a Dynamo namespace"),
    ],
)
def test_arguments_that_the_operator_owns_are_rejected(make_endpoint, make_plan, argument, message):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(engine={"args": ["--seed", "1", argument]}))
    assert error.value.reason is Reason.INVALID_SPEC
    assert error.value.message.startswith("engine.args: ")
    assert message in error.value.message


@pytest.mark.parametrize(
    "argument", ["--model-impl", "--max-model-len", "x --model", "-O3", "--", "--config-format", "--no-x"]
)
def test_other_arguments_are_rendered_verbatim(make_endpoint, make_plan, child, argument):
    planned = make_plan(make_endpoint(engine={"args": [argument]}))
    assert walk(child(planned, "Deployment", "smollm-workers"), f"{MAIN}.args")[-1] == argument


@pytest.mark.parametrize("name", ["DYN_NAMESPACE", "POD_UID", "DYN_SYSTEM_PORT", "VLLMENDPOINT_ANYTHING"])
def test_variables_that_the_operator_owns_are_rejected(make_endpoint, make_plan, name):
    with pytest.raises(PlanError, match=f"worker.env: {name} is set by the operator\\. Remove it: "):
        make_plan(make_endpoint(worker={"env": [{"name": name, "value": "x"}]}))


def test_user_variables_replace_defaults(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(worker={"env": [{"name": "HF_HOME", "value": "/mine"}]}))
    env = walk(child(planned, "Deployment", "smollm-workers"), f"{MAIN}.env")
    assert [item["value"] for item in env if item["name"] == "HF_HOME"] == ["/mine"]


def test_only_workers_get_the_token(make_endpoint, make_plan):
    planned = make_plan(make_endpoint(model={"uri": "hf://o/n", "tokenSecretRef": {"name": "the-secret"}}))
    naming = {(c["kind"], c["metadata"]["name"]) for c in planned.children if "the-secret" in json.dumps(c)}
    assert naming == {("ControllerRevision", planned.revision.name), ("Deployment", "smollm-workers")}


def test_a_token_set_twice_is_rejected(make_endpoint, make_plan):
    model = {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf"}}
    env = [{"name": "HF_TOKEN", "value": "x"}]
    with pytest.raises(
        PlanError, match=r"tokenSecretRef: HF_TOKEN is also set in worker\.env\. Remove one of them\."
    ):
        make_plan(make_endpoint(model=model, worker={"env": env}))


def test_a_variable_with_value_and_source_is_rejected(make_endpoint, make_plan):
    item = {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    with pytest.raises(PlanError, match=r"A has both value and valueFrom\. Remove one"):
        make_plan(make_endpoint(worker={"env": [item]}))


@pytest.mark.parametrize(
    ("maps", "reason", "message"),
    [
        ({}, Reason.CONFIG_MAP_NOT_FOUND, "The ConfigMap 'c' does not exist in this namespace. Create it"),
        ({"c": {"a": "1", "b": "2"}}, Reason.CONFIG_MAP_KEY_NOT_FOUND, "no key 'k'. Its keys: a, b."),
        ({"c": {}}, Reason.CONFIG_MAP_KEY_NOT_FOUND, "Its keys: none."),
    ],
)
def test_missing_references_are_named(
    make_endpoint, make_plan, make_observed, config_maps, maps, reason, message
):
    endpoint = make_endpoint(engine={"config": {"configMapKeyRef": {"name": "c", "key": "k"}}})
    observed = make_observed(make_plan(make_endpoint()), config_maps=config_maps(**maps))
    with pytest.raises(PlanError) as error:
        make_plan(endpoint, observed)
    assert error.value.reason is reason
    assert message in error.value.message


SCRIPT = "def custom_sagemaker_ping_handler(request):\n    return 1\n"


@pytest.mark.parametrize(
    "script", [{"inline": SCRIPT}, {"configMapKeyRef": {"name": "scripts", "key": "model.py"}}]
)
def test_handlers_are_part_of_the_settings(make_endpoint, make_plan, child, config_maps, noon, script):
    world = Observed(now=noon, config_maps=config_maps(scripts={"model.py": SCRIPT}))
    handlers = {"script": script, "ping": "model:custom_sagemaker_ping_handler"}
    planned = make_plan(make_endpoint(handlers=handlers), world)
    data = child(planned, "ConfigMap", "smollm-settings")["data"]
    assert data["model.py"] == SCRIPT
    assert json.loads(data["settings.json"])["handlers"] == {
        "scriptDigest": script_digest(SCRIPT.encode()),
        "ping": "model:custom_sagemaker_ping_handler",
    }
    other = make_plan(make_endpoint(handlers={"script": {"inline": SCRIPT + "# changed\n"}}), world)
    assert other.settings.hash != planned.settings.hash
    workers = [child(it, "Deployment", "smollm-workers") for it in (planned, other)]
    assert workers[0] == workers[1], "a change of handlers restarts nothing"


@pytest.mark.parametrize(("data", "reason"), [(None, "ConfigMapNotFound"), ({}, "ConfigMapKeyNotFound")])
def test_a_missing_script_is_reported(make_endpoint, make_plan, config_maps, noon, data, reason):
    maps = {} if data is None else config_maps(scripts=data)
    one = make_endpoint(handlers={"script": {"configMapKeyRef": {"name": "scripts"}}})
    with pytest.raises(PlanError, match=r"handlers\.script\.configMapKeyRef") as caught:
        make_plan(one, Observed(now=noon, config_maps=maps))
    assert caught.value.reason == reason


def test_the_kubelet_restarts_a_worker_only_after_ten_minutes_without_response(
    make_endpoint, make_plan, child
):
    template = child(make_plan(make_endpoint()), "Deployment", "smollm-workers")["spec"]["template"]
    (main,) = template["spec"]["containers"]
    probe = main["livenessProbe"]
    assert probe["httpGet"] == {"path": "/live", "port": "report", "scheme": "HTTP"}, "not the verdict"
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600


def test_a_replacement_serves_before_the_old_pod_terminates(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint())
    assert walk(child(planned, "Deployment", "smollm-workers"), "spec.minReadySeconds") >= 5
    frontend = walk(child(planned, "Deployment", "smollm-frontend"), MAIN)
    assert frontend["readinessProbe"]["httpGet"]["path"] == "/ready", "it has a route to a worker"
    assert walk(frontend, "env.[name=VLLMENDPOINT_DRAIN_SECONDS].value") == "105"
    assert "lifecycle" not in frontend, "the process drains after SIGTERM"


@pytest.mark.parametrize(
    ("grace", "seconds"), [(0, 0), (1, 1), (5, 4), (30, 23), (120, 105), (300, 285), (None, 23), ("x", 105)]
)
def test_the_frontend_drains_no_longer_than_its_grace_period(make_endpoint, make_plan, child, grace, seconds):
    template = {"spec": {"terminationGracePeriodSeconds": grace}}
    planned = make_plan(make_endpoint(frontend={"podTemplate": template}))
    frontend = child(planned, "Deployment", "smollm-frontend")
    assert walk(frontend, f"{MAIN}.env.[name=VLLMENDPOINT_DRAIN_SECONDS].value") == str(seconds)


def test_the_frontend_has_what_its_probes_need(make_endpoint, make_plan, child):
    endpoint = make_endpoint(model={"uri": "hf://o/n", "name": "mine", "type": "Chat"})
    planned = make_plan(endpoint)
    pod = walk(child(planned, "Deployment", "smollm-frontend"), "spec.template.spec")
    main = walk(pod, "containers.[name=main]")
    assert [*main["command"], *main["args"]] == [
        *("python3", "-m", "vllmendpoint_worker.frontend"),
        *("--http-port", "8000"),
    ]
    env = {item["name"]: item.get("value") for item in main["env"]}
    expected = {
        "VLLMENDPOINT_MODEL_NAME": "mine",
        "VLLMENDPOINT_MODEL_TYPE": "Chat",
        "VLLMENDPOINT_SETTINGS_DIR": "/etc/vllmendpoint",
        "VLLMENDPOINT_REPORT_PORT": "9091",
        "DYN_MIGRATION_LIMIT": "3",
    }
    assert expected.items() <= env.items()
    assert walk(main, "ports.[name=report].containerPort") == 9091
    assert walk(main, "volumeMounts.[name=settings]") == {
        "name": "settings",
        "mountPath": "/etc/vllmendpoint",
        "readOnly": True,
    }
    items = [{"key": "settings.json", "path": "settings.json"}]
    assert walk(pod, "volumes.[name=settings].configMap") == {"name": "smollm-settings", "items": items}
    assert {kind: walk(main, f"{kind}Probe.httpGet") for kind in ("startup", "readiness", "liveness")} == {
        "startup": {"path": "/started", "port": "report", "scheme": "HTTP"},
        "readiness": {"path": "/ready", "port": "report", "scheme": "HTTP"},
        "liveness": {"path": "/live", "port": "report", "scheme": "HTTP"},
    }
    plain = make_plan(make_endpoint(frontend={"migrationLimit": 0}))
    env = walk(child(plain, "Deployment", "smollm-frontend"), f"{MAIN}.env")
    assert walk(env, "[name=DYN_MIGRATION_LIMIT].value") == "0"
    assert "VLLMENDPOINT_MODEL_TYPE" not in [item["name"] for item in env]


def test_the_settings_exist_before_the_pods_that_mount_them(make_endpoint, make_plan):
    children = [object_key(child) for child in make_plan(make_endpoint()).children]
    settings = children.index(("ConfigMap", "smollm-settings"))
    assert settings < children.index(("Deployment", "smollm-workers"))
    assert settings < children.index(("Deployment", "smollm-frontend"))


def test_frontends_have_as_much_time_as_the_workers_that_they_wait_for(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(worker={"startupTimeoutSeconds": 7200}))
    for part in ("workers", "frontend"):
        assert walk(child(planned, "Deployment", f"smollm-{part}"), "spec.progressDeadlineSeconds") == 7800


@pytest.mark.parametrize(("replicas", "unavailable"), [(0, "100%"), (1, None)])
def test_a_rollout_of_frontends_without_workers_does_not_wait_for_routes(
    make_endpoint, make_plan, child, replicas, unavailable
):
    frontend = child(make_plan(make_endpoint(replicas=replicas)), "Deployment", "smollm-frontend")
    strategy = frontend["spec"].get("strategy", {}).get("rollingUpdate", {})
    assert strategy.get("maxUnavailable") == unavailable


def test_a_pre_stop_hook_of_the_user_is_kept(make_endpoint, make_plan, child):
    hook = {"preStop": {"exec": {"command": ["true"]}}}
    pod = {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "lifecycle": hook}]}
    planned = make_plan(make_endpoint(frontend={"podTemplate": {"spec": pod}}))
    assert walk(child(planned, "Deployment", "smollm-frontend"), f"{MAIN}.lifecycle") == hook
