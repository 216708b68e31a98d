"""What is read from the responses of Dynamo's HTTP server. The responses were recorded from Dynamo 1.6.1."""

from typing import Any

import pytest

from vllmendpoint_worker.frontend.discovery import (
    Discovery,
    Instance,
    Scope,
    accepted_workers,
    instances,
    missing_types,
    models,
)


def row(namespace: str, number: int, endpoint: str = "generate") -> dict[str, Any]:
    return {
        "component": "backend",
        "endpoint": endpoint,
        "namespace": namespace,
        "instance_id": number,
        "transport": {"tcp": f"127.0.0.1:44293/2ece1e4d7d4256e0/{namespace}/backend/{endpoint}"},
        "device_type": "cuda",
        "request_plane_codec": "msgpack",
    }


HEALTH = {
    "status": "healthy",
    "endpoints": ["dyn://a_1.backend.generate", "dyn://other.backend.generate"],
    "instances": [
        row("a_1", 16474951932736473892),
        row("a_1", 16474951932736473892, "load_lora"),
        row("a_2", 7),
        row("other", 8),
    ],
}
READY = {
    "model": "m",
    "ready": True,
    "namespaces": {
        "a_1": {
            "ready": True,
            "worker_types": {
                "prefill": {"workers": 1, "needs": []},
                "decode": {"workers": 2, "needs": ["prefill"]},
            },
            "present": ["prefill", "decode"],
            "missing_worker_types": [],
        },
        "a_2": {"ready": False, "worker_types": {"aggregated": {"workers": 0}}},
    },
}


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        (Scope(), [("a_1", 16474951932736473892), ("a_2", 7), ("other", 8)]),
        (Scope(prefix="a_"), [("a_1", 16474951932736473892), ("a_2", 7)]),
        (Scope(namespace="a_2"), [("a_2", 7)]),
        (Scope(namespace="other", prefix="a_2"), [("a_2", 7)]),
    ],
)
def test_each_worker_of_the_frontends_namespaces_is_found_once(
    scope: Scope, found: list[tuple[str, int]]
) -> None:
    assert instances(HEALTH, scope) == tuple(Instance(*one) for one in found)


def test_accepted_workers_per_namespace_and_type() -> None:
    accepted = accepted_workers(READY)
    assert accepted == {"a_1": {"prefill": 1, "decode": 2}, "a_2": {"aggregated": 0}}
    discovery = Discovery((), (), accepted)
    assert (discovery.accepted_in("a_1"), discovery.accepted_in("gone")) == (2, 0)
    assert (discovery.share("a_1"), discovery.share("a_2"), Discovery().share("a_1")) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"instances": 1, "data": 1, "namespaces": None},
        {"instances": [1, {"endpoint": "generate"}, row("a", -1), row("a", 2**64)], "data": [1, {"id": 2}]},
        {"namespaces": {"a": 1}},
        {"namespaces": [1]},
        {"message": "Model not found", "type": "Not Found", "code": 404},
    ],
)
def test_other_responses_contain_nothing(body: Any) -> None:
    assert (instances(body, Scope()), models(body), accepted_workers(body)) == ((), (), {})


def test_worker_types_of_another_form_count_as_none() -> None:
    body = {"namespaces": {"a": {"worker_types": [1], "missing_worker_types": 1}}}
    assert (accepted_workers(body), missing_types(body)) == ({"a": {}}, {"a": ()})


def test_the_models_in_the_order_of_the_response() -> None:
    assert models({"data": [{"id": "meta/llama"}, {"id": "b"}]}) == ("meta/llama", "b")
