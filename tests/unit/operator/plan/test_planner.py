"""The objects of an endpoint as a whole: owners, names, order, addresses, policies and availability."""

from tests.nested import walk
from vllmendpoint_operator.components import invocations_url, url
from vllmendpoint_operator.observe.snapshot import object_key

MAIN = "spec.template.spec.containers.0"


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


def test_only_pods_of_the_endpoint_may_connect_to_dynamo_and_between_engines(make_endpoint, make_plan, child):
    """5600 and 5601: NIXL's side channels; 8998: Mooncake's; 29550: vLLM's data-parallel RPC."""
    policy = child(make_plan(make_endpoint()), "NetworkPolicy", "smollm-workers")

    def sources(number):
        return [
            rule.get("from")
            for rule in policy["spec"]["ingress"]
            for port in rule["ports"]
            if port["port"] <= number <= port.get("endPort", port["port"])
        ]

    assert sources(8080) == [None]
    assert sources(5599) == sources(6000) == []
    peers = {"app.kubernetes.io/name": "vllmendpoint", "app.kubernetes.io/instance": "smollm"}
    for number in (5600, 5601, 5999, 8998, 9090, 9092, 29550, 65535):
        assert sources(number) == [[{"podSelector": {"matchLabels": peers}}]], number
    ((operator,),) = sources(9091)
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


def test_the_settings_exist_before_the_pods_that_mount_them(make_endpoint, make_plan):
    children = [object_key(child) for child in make_plan(make_endpoint()).children]
    settings = children.index(("ConfigMap", "smollm-settings"))
    assert settings < children.index(("Deployment", "smollm-workers"))
    assert settings < children.index(("Deployment", "smollm-frontend"))
