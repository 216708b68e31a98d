"""The chart's settings that a plan depends on."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    worker_image: str
    """Default of ``worker.image``. The revision pins it for each endpoint."""
    frontend_image: str
    """Default of ``frontend.image``. The revision pins it for each endpoint."""
    role_kind: str = "ClusterRole"
    """``Role`` if the chart has no cluster-scoped resources."""
    role_name: str = "vllmendpoint-worker"
    """Role that the chart creates for workers and frontends."""
    operator_namespace: str = "vllmendpoint-system"
    operator_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the operator's pods. The NetworkPolicy allows these pods to connect to the report port."""
    additional_ingress: tuple[dict[str, Any], ...] = ()
    """NetworkPolicyIngressRules to add to the pods of every endpoint."""
    fixed_user: bool = True
    """Whether pods set user and group IDs. OpenShift's restricted-v2 accepts only those of the namespace."""
