"""Services and NetworkPolicies of workers and frontend. Pure."""

from typing import Any

from vllmendpoint_api import names
from vllmendpoint_operator.components import (
    FRONTEND,
    WORKER,
    WorkerPool,
    frontend_name,
    has_frontend,
    worker_pools,
)
from vllmendpoint_operator.observe.snapshot import Endpoint

from .options import Options
from .pods.dynamo import REQUEST_PORT, dynamo_labels
from .pods.routing import shares_state

__all__ = ["network_policies", "services"]

_LAST_PORT = 65_535
_ENGINE_PORTS = (
    {"port": 5600, "endPort": 5999, "protocol": "TCP"},
    {"port": 8998, "protocol": "TCP"},
)
"""Channels between engines, by the defaults of vLLM's variables ``VLLM_*_SIDE_CHANNEL_PORT`` (NIXL:
5600 and one per data-parallel rank) and ``VLLM_MOONCAKE_BOOTSTRAP_PORT``. Others are above Dynamo's ports."""


def services(endpoint: Endpoint, *, draining: bool) -> list[dict[str, Any]]:
    """``draining``: the frontends' Service selects only frontends that drain."""
    workers = [_workers_service(endpoint, pool) for pool in worker_pools(endpoint)]
    if not has_frontend(endpoint):
        return workers
    frontends = _service(endpoint, endpoint.name, FRONTEND, [("http", names.FRONTEND_PORT, "http")])
    if shares_state(endpoint.spec.frontend.routing):
        # Frontends discover each other the same way.
        frontends["metadata"]["labels"].update(dynamo_labels(endpoint, FRONTEND))
    if draining:
        frontends["spec"]["selector"][names.LABEL_DRAINS] = "true"
    return [*workers, frontends]


def _workers_service(endpoint: Endpoint, pool: WorkerPool) -> dict[str, Any]:
    service = _service(
        endpoint,
        pool.name,
        pool.component,
        [("http", names.SAGEMAKER_PORT, "sagemaker"), ("system", names.SYSTEM_PORT, "system")],
    )
    # Dynamo discovers workers through EndpointSlices of Services with these labels.
    service["metadata"]["labels"].update(dynamo_labels(endpoint, pool.component))
    return service


def _service(
    endpoint: Endpoint, name: str, component: str, ports: list[tuple[str, int, str]]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": endpoint.labels(component)},
        "spec": {
            "type": "ClusterIP",
            "selector": endpoint.selector(component),
            "ports": [
                {"name": port_name, "port": port, "targetPort": target, "protocol": "TCP"}
                for port_name, port, target in ports
            ],
        },
    }


def network_policies(endpoint: Endpoint, options: Options) -> list[dict[str, Any]]:
    """All clients may connect to the serving ports, the endpoint's pods to the ports of Dynamo and of
    channels between engines, and the operator to the report port. The chart may add rules.

    A NetworkPolicy does not restrict the kubelet of the pod's node.
    """
    peers = {
        "podSelector": {
            "matchLabels": {
                names.LABEL_NAME: endpoint.labels(WORKER)[names.LABEL_NAME],
                names.LABEL_INSTANCE: endpoint.name,
            }
        }
    }
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": options.operator_namespace}},
        "podSelector": {"matchLabels": options.operator_labels},
    }
    dynamo = {"port": REQUEST_PORT, "endPort": _LAST_PORT, "protocol": "TCP"}
    policies = [
        _policy(
            endpoint,
            pool.name,
            pool.component,
            [
                {"ports": [_port(names.SAGEMAKER_PORT)]},
                {"from": [peers], "ports": [*_ENGINE_PORTS, _port(names.SYSTEM_PORT), dynamo]},
                {"from": [operator], "ports": [_port(names.REPORT_PORT)]},
                *options.additional_ingress,
            ],
        )
        for pool in worker_pools(endpoint)
    ]
    if has_frontend(endpoint):
        policies.append(
            _policy(
                endpoint,
                frontend_name(endpoint),
                FRONTEND,
                [
                    {"ports": [_port(names.FRONTEND_PORT)]},
                    {"from": [peers], "ports": [dynamo]},
                    {"from": [operator], "ports": [_port(names.REPORT_PORT)]},
                    *options.additional_ingress,
                ],
            )
        )
    return policies


def _policy(endpoint: Endpoint, name: str, component: str, ingress: list[Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": endpoint.labels(component)},
        "spec": {
            "podSelector": {"matchLabels": endpoint.selector(component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _port(number: int) -> dict[str, Any]:
    return {"port": number, "protocol": "TCP"}
