"""``frontend.routing``: the router's options, the workers' KV events, and options that contradict them."""

import json

import pytest

from tests.nested import walk
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError

MAIN = "spec.template.spec.containers.[name=main]"


@pytest.fixture
def rendered(make_endpoint, make_plan, child):
    """(environment of the frontend, environment of the worker, arguments of the worker, templates)."""

    def render(routing=None, **spec):
        frontend = {} if routing is None else {"routing": routing}
        planned = make_plan(make_endpoint(frontend=frontend, **spec))
        frontend, worker = (
            child(planned, "Deployment", f"smollm-{name}") for name in ("frontend", "workers")
        )
        env = [
            {item["name"]: item.get("value") for item in walk(pods, f"{MAIN}.env")}
            for pods in (frontend, worker)
        ]
        return (
            *env,
            walk(worker, f"{MAIN}.args"),
            (frontend["spec"]["template"], worker["spec"]["template"]),
        )

    return render


def router_variables(env):
    return {name: value for name, value in env.items() if name.startswith("DYN_ROUTER_")}


@pytest.mark.parametrize("routing", [{}, {"mode": "RoundRobin"}])
def test_the_default_changes_no_template(rendered, routing):
    assert rendered(routing)[3] == rendered()[3]


@pytest.mark.parametrize(("mode", "dynamo"), [("Random", "random"), ("LeastLoaded", "least-loaded")])
def test_a_mode_without_kv_changes_only_the_frontend(rendered, mode, dynamo):
    frontend, _, _, (_, workers) = rendered({"mode": mode})
    assert router_variables(frontend) == {"DYN_ROUTER_MODE": dynamo}
    assert workers == rendered()[3][1]


def test_kv_configures_the_router_and_the_workers(rendered):
    frontend, worker, args, _ = rendered({"mode": "KV"}, engine={"args": ["--seed", "1"]})
    assert router_variables(frontend) == {"DYN_ROUTER_MODE": "kv", "DYN_ROUTER_REPLICA_SYNC": "true"}
    assert worker["VLLMENDPOINT_ROUTING_MODE"] == "KV"
    assert args[-2:] == ["--seed", "1"]
    events = json.loads(args[args.index("--kv-events-config") + 1])
    assert events == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "topic": "kv-events",
        "endpoint": "tcp://*:5557",
    }


def test_no_network_policy_opens_the_port_of_the_engines_kv_events(make_endpoint, make_plan, child):
    policy = child(
        make_plan(make_endpoint(frontend={"routing": {"mode": "KV"}})), "NetworkPolicy", "smollm-workers"
    )
    ranges = [
        (port["port"], port.get("endPort", port["port"]))
        for rule in policy["spec"]["ingress"]
        for port in rule.get("ports", ())
    ]
    assert (9092, 65535) in ranges  # Dynamo's event plane, from frontends
    assert not any(first <= 5557 <= last for first, last in ranges)


@pytest.mark.parametrize(
    ("routing", "shared"),
    [
        ({}, False),
        ({"mode": "LeastLoaded"}, False),
        ({"mode": "KV"}, True),
        ({"sessionAffinitySeconds": 9}, True),
    ],
)
def test_frontends_that_share_state_discover_each_other(make_endpoint, make_plan, child, routing, shared):
    service = child(make_plan(make_endpoint(frontend={"routing": routing})), "Service", "smollm")
    label = service["metadata"]["labels"].get("nvidia.com/dynamo-discovery-enabled")
    assert label == ("true" if shared else None)


def test_session_affinity_lets_requests_move(rendered):
    frontend, _, _, (_, workers) = rendered({"sessionAffinitySeconds": 600})
    assert router_variables(frontend) == {
        "DYN_ROUTER_SESSION_AFFINITY_TTL_SECS": "600",
        "DYN_ROUTER_SESSION_AFFINITY_MODE": "soft",
    }
    assert workers == rendered()[3][1]


def test_the_mode_changes_the_revision_and_its_default_does_not(make_endpoint, make_plan, make_observed):
    first = make_plan(make_endpoint())
    same = make_plan(make_endpoint(frontend={"routing": {"mode": "RoundRobin"}}), make_observed(first))
    assert same.revision.name == first.revision.name
    kv = make_plan(make_endpoint(frontend={"routing": {"mode": "KV"}}), make_observed(first))
    assert kv.revision.name != first.revision.name


def container(*env):
    return {"podTemplate": {"spec": {"containers": [{"name": "main", "env": list(env)}]}}}


KV = {"routing": {"mode": "KV"}}
LEAST_LOADED = {"routing": {"mode": "LeastLoaded"}}
CONTRADICTIONS = [
    (KV, {"engine": {"args": ["--kv-events-config", "{}"]}}, "engine.args: --kv-events-config"),
    (
        KV,
        {"engine": {"args": ["--kv_events_config.publisher=zmq"]}},
        "engine.args: --kv-events-config.publisher",
    ),
    (KV, {"engine": {"args": ["--no-enable-prefix-caching"]}}, "engine.args: --no-enable-prefix-caching"),
    (KV, {"engine": {"args": ["--router-mode", "kv"]}}, "engine.args: --router-mode"),
    (LEAST_LOADED, {"engine": {"args": ["--router-mode=kv"]}}, "engine.args: --router-mode"),
    (
        KV,
        {"engine": {"config": {"inline": {"kv_events_config": {}}}}},
        "engine.config.inline: kv_events_config",
    ),
    (
        KV,
        {"engine": {"config": {"inline": {"enable-prefix-caching": False}}}},
        "engine.config.inline: enable-prefix-caching",
    ),
    (
        KV,
        {"worker": {"env": [{"name": "SM_VLLM_ENABLE_PREFIX_CACHING", "value": "false"}]}},
        "worker.env: SM_VLLM_ENABLE_PREFIX_CACHING",
    ),
    (KV, {"worker": {"env": [{"name": "SM_VLLM_KV_EVENTS_CONFIG"}]}}, "worker.env: SM_VLLM_KV_EVENTS_CONFIG"),
    (KV, {"worker": {"env": [{"name": "DYN_ROUTER_MODE", "value": "x"}]}}, "worker.env: DYN_ROUTER_MODE"),
    (
        LEAST_LOADED,
        {"worker": container({"name": "DYN_ROUTER_MODE", "value": "kv"})},
        "worker.podTemplate: DYN_ROUTER_MODE",
    ),
]


@pytest.mark.parametrize(("frontend", "spec", "starts"), CONTRADICTIONS, ids=lambda value: str(value)[-40:])
def test_an_option_that_contradicts_the_routing_is_refused_by_name(
    make_endpoint, make_plan, frontend, spec, starts
):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(frontend=frontend, **spec))
    assert error.value.message.startswith(f"{starts} contradicts frontend.routing. Remove it: ")


@pytest.mark.parametrize(
    "name",
    ["DYN_ROUTER_MODE", "DYN_ROUTER_USE_KV_EVENTS", "DYN_KV_CACHE_BLOCK_SIZE", "DYN_ROUTER_REPLICA_SYNC"],
)
def test_a_variable_of_the_frontend_that_contradicts_the_routing_is_refused(make_endpoint, make_plan, name):
    template = container({"name": name, "value": "1"})
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(frontend={**KV, **template}))
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert f"{name} is set by the operator" in error.value.message
    make_plan(make_endpoint(frontend=template))


@pytest.mark.parametrize(
    ("frontend", "spec"),
    [
        ({}, {"engine": {"args": ["--kv-events-config", "{}", "--no-enable-prefix-caching"]}}),
        ({}, {"engine": {"args": ["--router-mode", "kv"]}}),
        (LEAST_LOADED, {"engine": {"args": ["--no-enable-prefix-caching"]}}),
        (KV, {"engine": {"args": ["--enable-prefix-caching", "--block-size", "16"]}}),
        (KV, {"engine": {"config": {"inline": {"enable-prefix-caching": True}}}}),
    ],
)
def test_options_that_agree_with_the_routing_are_accepted(make_endpoint, make_plan, frontend, spec):
    make_plan(make_endpoint(frontend=frontend, **spec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"frontend": {"mode": "None", **KV}}, "frontend.routing: There is no frontend"),
        (
            {"model": {"uri": "hf://o/n", "type": "Embedding"}, "frontend": KV},
            "frontend.routing.mode: A model of type Embedding",
        ),
    ],
)
def test_routing_that_is_not_possible_is_refused(make_endpoint, make_plan, spec, message):
    with pytest.raises(PlanError, match=message):
        make_plan(make_endpoint(**spec))
