"""Service accounts of the endpoint's pods, bound to the chart's one static role."""

from collections.abc import Iterable
from typing import Any

from vllmendpoint_operator.components import FRONTEND, WORKER, frontend_name, has_frontend, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .options import Options
from .pods.workers import account_name

__all__ = ["accounts"]


def accounts(endpoint: Endpoint, observed: Observed, options: Options) -> list[dict[str, Any]]:
    """A ServiceAccount and a RoleBinding for the workers, and for the frontend where there is one.

    A worker of an earlier revision keeps what it runs with until it is gone: without its account it could
    not say any more that it stalls.
    """
    made, wanted = workers_name(endpoint), account_name(endpoint)
    bound = [wanted, *sorted(observed.accounts_in_use - {wanted})]
    found = [_account(endpoint, made, WORKER)] if made in bound else []
    found.append(_binding(endpoint, made, WORKER, bound, options))
    if has_frontend(endpoint):
        name = frontend_name(endpoint)
        found += [_account(endpoint, name, FRONTEND), _binding(endpoint, name, FRONTEND, [name], options)]
    return found


def _account(endpoint: Endpoint, name: str, component: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": endpoint.labels(component)}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _binding(
    endpoint: Endpoint, name: str, component: str, bound: Iterable[str], options: Options
) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "labels": endpoint.labels(component)},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": options.role_kind,
            "name": options.role_name,
        },
        "subjects": [
            {"kind": "ServiceAccount", "name": account, "namespace": endpoint.namespace} for account in bound
        ],
    }
