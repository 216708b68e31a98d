"""Read the conditions of a status, and change the status of a Deployment."""

from collections.abc import Callable
from typing import Any

import pytest

from vllmendpoint_api import VLLMEndpointStatus
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

Object = dict[str, Any]
Children = dict[tuple[str, str], Object]


@pytest.fixture
def finding(condition: Callable[..., Any]) -> Callable[..., tuple[str, str, str]]:
    """``finding(status, "Available")`` -> its status, reason and message."""

    def find(status: VLLMEndpointStatus, kind: str = "Ready") -> tuple[str, str, str]:
        entry = condition(status, kind)
        return entry.status, entry.reason, entry.message

    return find


@pytest.fixture
def message_of(condition: Callable[..., Any]) -> Callable[..., str]:
    """``message_of(status, "Available")``"""
    return lambda status, kind="Ready": str(condition(status, kind).message)


@pytest.fixture
def states() -> Callable[[VLLMEndpointStatus], dict[str, tuple[str, str]]]:
    """``states(status)["Available"]`` -> its status and reason."""
    return lambda status: {entry.type: (entry.status, entry.reason) for entry in status.conditions}


@pytest.fixture
def children_with(
    make_plan: Callable[..., Plan], make_observed: Callable[..., Observed]
) -> Callable[..., Children]:
    """The children of an endpoint, with another status of one of its Deployments."""

    def make(
        endpoint: Endpoint, component: str = "workers", children: Children | None = None, **status: Any
    ) -> Children:
        result = dict(make_observed(make_plan(endpoint)).children if children is None else children)
        key = ("Deployment", f"{endpoint.name}-{component}")
        result[key] = {**result[key], "status": {"observedGeneration": 1} | status}
        return result

    return make


@pytest.fixture
def make_workers(make_worker: Callable[..., Pod]) -> Callable[..., list[Pod]]:
    """``make_workers(endpoint, "Generating", "Stalled")``: pods ``w-0``, ``w-1``."""
    return lambda endpoint, *verdicts: [
        make_worker(f"w-{number}", verdict, settings=endpoint) for number, verdict in enumerate(verdicts)
    ]


@pytest.fixture
def serving_of(
    make_endpoint: Callable[..., Endpoint],
    make_status: Callable[..., VLLMEndpointStatus],
    make_worker: Callable[..., Pod],
    finding: Callable[..., tuple[str, str, str]],
) -> Callable[..., tuple[str, str, str]]:
    """The finding Serving of an endpoint with the ready workers w-1 and w-2 and these frontends."""

    def find(
        *frontends: Pod,
        workers: list[Pod] | None = None,
        before: Any = None,
        now: Any = None,
        replicas: int = 2,
    ) -> tuple[str, str, str]:
        endpoint = make_endpoint(replicas=replicas, before=before)
        if workers is None:
            workers = [make_worker(name, settings=endpoint) for name in ("w-1", "w-2")]
        more = {} if now is None else {"now": now}
        return finding(make_status(endpoint, *workers, frontends=frontends, **more), "Serving")

    return find
