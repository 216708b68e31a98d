"""``frontend.routing``: the options of Dynamo's router, and what workers need for KV-aware routing. Pure.

See docs/decisions/0041-routing-modes.md.
"""

import json
from typing import Final

from vllmendpoint_api import RoutingMode, RoutingSpec, names

__all__ = ["KV_EVENT_ARGUMENTS", "ROUTER_VARIABLES", "router_env", "shares_state", "worker_routing_env"]

_DYNAMO_MODES: Final = {
    RoutingMode.RANDOM: "random",
    RoutingMode.LEAST_LOADED: "least-loaded",
    RoutingMode.KV: "kv",
}
"""Without a mode, Dynamo's frontend uses round-robin, and pods of earlier releases have none."""

ROUTER_VARIABLES: Final = frozenset(
    {
        "DYN_ROUTER_MODE",
        "DYN_ROUTER_LOAD_AWARE",
        "DYN_ROUTER_REPLICA_SYNC",
        "DYN_ROUTER_SESSION_AFFINITY_MODE",
        "DYN_ROUTER_SESSION_AFFINITY_TTL_SECS",
        "DYN_ROUTER_USE_KV_EVENTS",
        "DYN_KV_CACHE_BLOCK_SIZE",
    }
)
"""Variables of the frontend that contradict a ``frontend.routing`` that is not the default. The block size
comes from the workers' model cards."""

KV_EVENT_ARGUMENTS: Final = (
    "--kv-events-config",
    json.dumps(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "topic": "kv-events",
            # With a host instead of "*", vLLM connects to the address and publishes nothing.
            "endpoint": f"tcp://*:{names.KV_EVENTS_PORT}",
        }
    ),
)
"""Arguments of a worker. Dynamo in the same process reads the events and publishes them to the frontends."""


def router_env(routing: RoutingSpec) -> dict[str, str]:
    """Variables of Dynamo's frontend; empty for the default, so that existing endpoints keep their pods."""
    mode = RoutingMode(routing.mode)
    env = {}
    if mode in _DYNAMO_MODES:
        env["DYN_ROUTER_MODE"] = _DYNAMO_MODES[mode]
    if mode is RoutingMode.KV:
        # Each frontend includes the requests that the others have in flight.
        env["DYN_ROUTER_REPLICA_SYNC"] = "true"
    if routing.session_affinity_seconds is not None:
        env["DYN_ROUTER_SESSION_AFFINITY_TTL_SECS"] = str(routing.session_affinity_seconds)
        # With "hard", requests in flight cannot move, and later ones fail until the worker has left.
        env["DYN_ROUTER_SESSION_AFFINITY_MODE"] = "soft"
    return env


def shares_state(routing: RoutingSpec) -> bool:
    """Whether the frontends of an endpoint exchange requests in flight or sessions."""
    return routing.mode == RoutingMode.KV or routing.session_affinity_seconds is not None


def worker_routing_env(routing: RoutingSpec) -> dict[str, str]:
    """Variables of the worker. Only KV changes the workers' template."""
    if routing.mode != RoutingMode.KV:
        return {}
    return {names.ENV_ROUTING_MODE: RoutingMode.KV.value}
