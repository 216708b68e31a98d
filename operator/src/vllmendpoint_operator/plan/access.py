"""Service accounts of the endpoint's pods, bound to the chart's one static role."""

from typing import Any

from vllmendpoint_operator.model import Endpoint

from .frontend import frontend_name, managed
from .options import Options
from .pods import FRONTEND, WORKER
from .workload import deployment_name

__all__ = ["accounts"]


def accounts(endpoint: Endpoint, options: Options) -> list[dict[str, Any]]:
    """A ServiceAccount and a RoleBinding for the workers, and for the frontend where there is one."""
    pairs = [(deployment_name(endpoint), WORKER)]
    if managed(endpoint):
        pairs.append((frontend_name(endpoint), FRONTEND))
    return [obj for name, component in pairs for obj in _account(endpoint, name, component, options)]


def _account(endpoint: Endpoint, name: str, component: str, options: Options) -> list[dict[str, Any]]:
    metadata = {"name": name, "labels": endpoint.labels(component)}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": options.role_kind,
                "name": options.role_name,
            },
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": endpoint.namespace}],
        },
    ]
