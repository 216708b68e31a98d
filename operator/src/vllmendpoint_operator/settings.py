"""Parses the operator's flags. Each flag can also be set by an environment variable: ``--log-level`` by
``VLLMENDPOINT_LOG_LEVEL``.
"""

import os
import socket
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .kube.ingress_rule import IngressRule
from .plan.options import Options

__all__ = ["Settings"]


class Settings(BaseSettings):
    """The VLLMEndpoint operator."""

    model_config = SettingsConfigDict(
        env_prefix="VLLMENDPOINT_",
        cli_parse_args=True,
        cli_kebab_case=True,
        cli_prog_name="vllmendpoint_operator",
        frozen=True,
    )

    worker_image: Annotated[
        str, Field(min_length=1, description="Image of workers. Endpoints may set another one.")
    ]
    frontend_image: Annotated[
        str, Field(min_length=1, description="Image of frontends. Endpoints may set another one.")
    ]
    namespaces: Annotated[
        str,
        NoDecode,
        Field(description="Namespaces to watch, separated by commas. Empty: the whole cluster."),
    ] = ""
    namespace: Annotated[str, Field(description="Namespace of the operator itself.")] = "vllmendpoint-system"
    pod_labels: Annotated[
        str,
        NoDecode,
        Field(
            description="Labels of the operator's pods, as key=value,... NetworkPolicies allow these pods "
            "to connect to the report port of workers."
        ),
    ] = "app.kubernetes.io/name=vllmendpoint-operator"
    additional_ingress: Annotated[
        list[IngressRule],
        Field(description="List of NetworkPolicyIngressRules for the pods of all endpoints, as JSON."),
    ] = []
    fixed_user: Annotated[
        bool,
        Field(description="Whether pods set their user and group IDs. False for OpenShift's restricted-v2."),
    ] = True
    worker_role_kind: Annotated[
        Literal["ClusterRole", "Role"], Field(description="Kind of the role that workers and frontends get.")
    ] = "ClusterRole"
    worker_role_name: Annotated[
        str, Field(description="Name of the role that workers and frontends get.")
    ] = "vllmendpoint-worker"
    kubeconfig: Annotated[
        str, Field(description="Path of a kubeconfig file. Empty: use the pod's service account.")
    ] = ""
    lease_name: Annotated[str, Field(description="Name of the Lease that elects the leader.")] = (
        "vllmendpoint-operator"
    )
    lease_seconds: Annotated[
        int, Field(ge=6, description="Seconds after which a lease that is not renewed expires.")
    ] = 15
    identity: Annotated[
        str, Field(description="Name of this process in the Lease. Default: host name and process ID.")
    ] = ""
    operator_name: Annotated[
        str,
        Field(
            max_length=256,
            description="Name in claims of endpoints. Default: namespace and lease name, as namespace/name.",
        ),
    ] = ""
    max_concurrent_reconciles: Annotated[
        int, Field(ge=1, le=64, description="Maximum number of endpoints that are reconciled in parallel.")
    ] = 8
    resync_seconds: Annotated[
        int, Field(ge=10, description="Seconds between two reconciles of an endpoint without events.")
    ] = 600
    report_port: Annotated[int, Field(description="Port of the workers' report server.")] = 9091
    metrics_port: Annotated[int, Field(description="Port of /metrics. 0: any free port.")] = 8080
    health_port: Annotated[int, Field(description="Port of /healthz and /readyz. 0: any free port.")] = 8081
    bind_address: Annotated[
        str, Field(description="Address of these two ports. Default: all IPv4 and IPv6 addresses.")
    ] = ""
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Lowest level of log lines.")
    ] = "INFO"
    log_format: Annotated[Literal["json", "text"], Field(description="Format of log lines.")] = "json"

    @property
    def holder_identity(self) -> str:
        """Unique name of this process, for the Lease and for Events."""
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def claim_name(self) -> str:
        """Name of the operator in ``status.operator`` of its endpoints; all of its replicas share it."""
        return self.operator_name or f"{self.namespace}/{self.lease_name}"

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """Empty: the whole cluster."""
        return tuple(name.strip() for name in self.namespaces.split(",") if name.strip())

    @property
    def options(self) -> Options:
        """The settings that plans depend on."""
        labels = dict(pair.split("=", 1) for pair in self.pod_labels.split(",") if "=" in pair)
        return Options(
            worker_image=self.worker_image,
            frontend_image=self.frontend_image,
            role_kind=self.worker_role_kind,
            role_name=self.worker_role_name,
            operator_namespace=self.namespace,
            operator_labels=labels,
            additional_ingress=tuple(rule.wire() for rule in self.additional_ingress),
            fixed_user=self.fixed_user,
        )
