"""What the chart's settings contribute to a plan."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    worker_image: str
    """Image of endpoints that name none; pinned per endpoint when it is rendered."""
    role_kind: str = "ClusterRole"
    """``ClusterRole``, or ``Role`` in namespaced mode."""
    role_name: str = "vllmendpoint-worker"
    """The chart's static role for workers and frontends."""
    operator_namespace: str = "vllmendpoint-system"
    operator_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the operator's pods, to let them reach the report port."""
    additional_ingress: tuple[dict[str, Any], ...] = ()
    """NetworkPolicyIngressRules for the pods of every endpoint, besides those that they need."""
    fixed_user: bool = True
    """Whether pods name a user and groups; OpenShift's restricted-v2 refuses any but the namespace's own."""
