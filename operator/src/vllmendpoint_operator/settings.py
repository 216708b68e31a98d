"""The operator's flags; every flag also has an environment variable, ``VLLMENDPOINT_`` + its name."""

import os
import socket
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .kube.ingress_rule import IngressRule
from .plan import Options

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
        str, Field(min_length=1, description="Image of workers and frontends of endpoints that name none.")
    ]
    namespaces: Annotated[
        str,
        NoDecode,
        Field(description="Namespaces to serve, separated by commas. Empty: the whole cluster."),
    ] = ""
    namespace: Annotated[str, Field(description="Namespace of the operator itself.")] = "vllmendpoint-system"
    pod_labels: Annotated[
        str,
        NoDecode,
        Field(description="Labels of the operator's pods, as key=value,...: they may reach the report port."),
    ] = "app.kubernetes.io/name=vllmendpoint-operator"
    additional_ingress: Annotated[
        list[IngressRule],
        Field(description="NetworkPolicyIngressRules for the pods of every endpoint, as JSON."),
    ] = []
    fixed_user: Annotated[
        bool,
        Field(description="Whether pods name their user and groups. False for OpenShift's restricted-v2."),
    ] = True
    worker_role_kind: Annotated[
        Literal["ClusterRole", "Role"], Field(description="Kind of the role of workers and frontends.")
    ] = "ClusterRole"
    worker_role_name: Annotated[str, Field(description="Name of the role of workers and frontends.")] = (
        "vllmendpoint-worker"
    )
    kubeconfig: Annotated[str, Field(description="A kubeconfig file. Empty: the pod's service account.")] = ""
    lease_name: Annotated[str, Field(description="Lease by which one replica leads.")] = (
        "vllmendpoint-operator"
    )
    lease_seconds: Annotated[int, Field(ge=6, description="How long a lease lasts without renewal.")] = 15
    identity: Annotated[str, Field(description="Holder's name in the lease. Default: the host's.")] = ""
    operator_name: Annotated[
        str,
        Field(
            max_length=256,
            description="Name by which this operator claims endpoints. Default: namespace and lease name, as "
            "namespace/name.",
        ),
    ] = ""
    max_concurrent_reconciles: Annotated[
        int, Field(ge=1, le=64, description="Maximum number of endpoints that are reconciled in parallel.")
    ] = 8
    resync_seconds: Annotated[
        int, Field(ge=10, description="Every endpoint is looked at this often, whatever happens.")
    ] = 600
    report_port: Annotated[int, Field(description="Port on which workers report.")] = 9091
    metrics_port: Annotated[int, Field(description="Port of /metrics. 0: any free one.")] = 8080
    health_port: Annotated[int, Field(description="Port of /healthz and /readyz. 0: any free one.")] = 8081
    bind_address: Annotated[
        str, Field(description="Address of the two ports. Default: all addresses, IPv4 and IPv6.")
    ] = ""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field()] = "INFO"
    log_format: Annotated[Literal["json", "text"], Field()] = "json"

    @property
    def holder_identity(self) -> str:
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def claim_name(self) -> str:
        """Its identity on the endpoints that it manages; all of its replicas have it."""
        return self.operator_name or f"{self.namespace}/{self.lease_name}"

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.namespaces.split(",") if name.strip())

    @property
    def options(self) -> Options:
        labels = dict(pair.split("=", 1) for pair in self.pod_labels.split(",") if "=" in pair)
        return Options(
            worker_image=self.worker_image,
            role_kind=self.worker_role_kind,
            role_name=self.worker_role_name,
            operator_namespace=self.namespace,
            operator_labels=labels,
            additional_ingress=tuple(rule.wire() for rule in self.additional_ingress),
            fixed_user=self.fixed_user,
        )
