"""ServiceAccounts of the endpoint's pods, and their RoleBindings to the role that the chart creates. Pure."""

from collections.abc import Iterable
from typing import Any

from vllmendpoint_operator.components import FRONTEND, WORKER, frontend_name, has_frontend, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .options import Options
from .pods.workers import account_name

__all__ = ["accounts"]


def accounts(endpoint: Endpoint, observed: Observed, options: Options) -> list[dict[str, Any]]:
    """A ServiceAccount and a RoleBinding for the workers, and for the frontend if there is one.

    The RoleBinding includes the accounts of older workers until these are gone: without permissions they
    could not publish that they are stalled.
    """
    own, used = workers_name(endpoint), account_name(endpoint)
    subjects = [used, *sorted(observed.accounts_in_use - {used})]
    objects = [_account(endpoint, own, WORKER)] if own in subjects else []
    objects.append(_binding(endpoint, own, WORKER, subjects, options))
    if has_frontend(endpoint):
        name = frontend_name(endpoint)
        objects += [_account(endpoint, name, FRONTEND), _binding(endpoint, name, FRONTEND, [name], options)]
    return objects


def _account(endpoint: Endpoint, name: str, component: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": endpoint.labels(component)}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _binding(
    endpoint: Endpoint, name: str, component: str, subjects: Iterable[str], options: Options
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
            {"kind": "ServiceAccount", "name": account, "namespace": endpoint.namespace}
            for account in subjects
        ],
    }
